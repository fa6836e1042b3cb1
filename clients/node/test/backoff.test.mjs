import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Backoff } from '../dist/esm/backoff.js';

const failures = (backoff, count, random) => Array.from({ length: count }, () => backoff.next(0, random));

test('waits double from 100 ms and stay at 5 s, within the agent\'s 10 s of grace', () => {
  assert.deepEqual(failures(new Backoff(), 8, 0), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
  assert.ok(failures(new Backoff(), 2000, 0).every((ms) => ms <= 5000));
});

test('jitter shortens a wait by up to half', () => {
  assert.deepEqual(failures(new Backoff(), 3, 1), [50, 100, 200]);
});

test('a session that lived starts the waits over, one that ended at once does not', () => {
  const backoff = new Backoff();
  failures(backoff, 5, 0);
  assert.equal(backoff.next(10, 0), 3200);
  assert.equal(backoff.next(60_000, 0), 100);
});
