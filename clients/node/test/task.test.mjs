// One task against a recording outlet, with the clock in the test's hand.
import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { Task } from '../dist/esm/task.js';

function recorder() {
  return {
    chunks: [],
    ends: [],
    gate: undefined,
    chunk(id, output) {
      this.chunks.push({ id, ...output });
    },
    finish(id, outcome) {
      this.ends.push({ id, ...outcome });
    },
    full() {
      return this.gate;
    },
  };
}

function task(provider, { streaming = false, outlet = recorder() } = {}) {
  const offer = {
    task_id: 't', provider_name: 'p', request_json: Buffer.from('{}'), streaming, timeout_ms: 1000, w3c_trace_context: {},
  };
  return { task: new Task(offer, provider, outlet), outlet };
}

/** Lets every promise that can settle do so. */
const settle = async () => {
  for (let i = 0; i < 20; i++) await Promise.resolve();
};

test('a complete() that takes long shows a sign of life every 30 s, and none after its end', async () => {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  try {
    let answer;
    const { task: running, outlet } = task({ complete: () => new Promise((resolve) => (answer = resolve)) });
    const done = running.run();
    await settle();
    mock.timers.tick(29_999);
    assert.deepEqual(outlet.chunks, []);
    mock.timers.tick(60_001);
    assert.deepEqual(outlet.chunks, [{ id: 't' }, { id: 't' }, { id: 't' }]);
    answer('late');
    await done;
    mock.timers.tick(300_000);
    assert.equal(outlet.chunks.length, 3);
    assert.equal(outlet.ends[0].result.content, 'late');
  } finally {
    mock.timers.reset();
  }
});

test('a provider that ignores its signal gets 5 s, then the task ends cancelled all the same', async () => {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  try {
    const { task: running, outlet } = task({ complete: () => new Promise(() => {}) });
    const done = running.run();
    await settle();
    running.cancel('CANCEL_REASON_CALLER_GONE');
    running.cancel('CANCEL_REASON_CALLER_GONE');
    mock.timers.tick(4_999);
    await settle();
    assert.deepEqual(outlet.ends, []);
    mock.timers.tick(1);
    await done;
    assert.deepEqual(outlet.ends, [{ id: 't', cancelled: {} }]);
  } finally {
    mock.timers.reset();
  }
});

test('an iterator whose next() and return() never answer is left behind after a cancel', async () => {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  try {
    const stuck = { next: () => new Promise(() => {}), return: () => new Promise(() => {}) };
    const stream = () => ({ [Symbol.asyncIterator]: () => stuck });
    const { task: running, outlet } = task({ complete: () => '', stream }, { streaming: true });
    const done = running.run();
    await settle();
    running.cancel('CANCEL_REASON_DEADLINE');
    for (let i = 0; i < 3; i++) {
      mock.timers.tick(5_000);
      await settle();
    }
    await done;
    assert.deepEqual(outlet.ends, [{ id: 't', cancelled: {} }]);
  } finally {
    mock.timers.reset();
  }
});

test('nothing is asked of the iterator while the stream is full', async () => {
  let pulled = 0;
  const stream = function* () {
    for (;;) yield `${(pulled += 1)}`;
  };
  const outlet = recorder();
  let open;
  const chunk = outlet.chunk;
  outlet.chunk = function (id, output) {
    chunk.call(this, id, output);
    if (this.chunks.length % 3 === 0) this.gate = new Promise((resolve) => (open = resolve));
  };
  const { task: running } = task({ complete: () => '', stream }, { streaming: true, outlet });
  const done = running.run();
  await settle();
  assert.equal(pulled, 3);
  outlet.gate = undefined;
  open();
  await settle();
  assert.equal(pulled, 6);
  running.cancel('CANCEL_REASON_CALLER_GONE');
  await done;
  assert.equal(pulled, 6);
  assert.deepEqual(outlet.ends, [{ id: 't', cancelled: {} }]);
});

test('an abort of a finished task changes nothing', async () => {
  const { task: done, outlet } = task({ complete: () => 'x' });
  await done.run();
  done.cancel('CANCEL_REASON_CALLER_GONE');
  await settle();
  assert.equal(outlet.ends.length, 1);
});
