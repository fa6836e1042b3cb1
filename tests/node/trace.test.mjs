// One trace from the caller's traceparent down to the span that the provider makes in Node, with a collector of the test's own.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { trace } from '@opentelemetry/api';
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node';
import { startRegistrar } from '@mcpctl/mcprelay-client';
import protobuf from 'protobufjs';
import { Mcpd, newHome, REPO, startAgent, stopAll, until } from './parts.mjs';

const CALLER = { trace: '4bf92f3577b34da6a3ce929d0e0e4736', span: '00f067aa0ba902b7' };
const LLM = 'traced';

// As much of OTLP as the test reads.
const { root: otlp } = protobuf.parse(`
  syntax = "proto3";
  message Request { repeated ResourceSpans resource_spans = 1; }
  message ResourceSpans { repeated ScopeSpans scope_spans = 2; }
  message ScopeSpans { repeated Span spans = 2; }
  message Span { bytes trace_id = 1; bytes span_id = 2; bytes parent_span_id = 4; string name = 5; }
`);

const ours = new InMemorySpanExporter();
const relayed = [];
let collector;
let mcpd;
let home;
let registrar;

before(async () => {
  new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(ours)] }).register();
  collector = createServer(collect).listen(0, '127.0.0.1');
  await once(collector, 'listening');
  mcpd = await Mcpd.start();
  home = newHome(mcpd);
  startAgent(home, {
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `http://127.0.0.1:${collector.address().port}/v1/traces`,
    OTEL_BSP_SCHEDULE_DELAY: '50',
  });
  const traced = await guidesTraced();
  registrar = startRegistrar({
    socketPath: home.socket,
    clientId: 'trace-test',
    providers: [{ name: LLM, type: 'test', model: 'test-model', publish: true, complete: traced(complete), stream: traced(stream) }],
  });
  await mcpd.row(LLM, 'active');
  await until('the agent is online', () => registrar.status.agent?.state === 'online');
});

beforeEach(() => {
  ours.reset();
  relayed.length = 0;
});

after(async () => {
  await registrar?.stop({ graceMs: 1_000 });
  await stopAll();
  collector?.close();
  collector?.closeAllConnections();
  home?.remove();
});

/** Keeps the spans of one export, ids as hexadecimal text. */
async function collect(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const exported = otlp.lookupType('Request').decode(Buffer.concat(parts));
  const spans = exported.resourceSpans.flatMap((r) => r.scopeSpans).flatMap((s) => s.spans);
  const hex = (bytes) => Buffer.from(bytes).toString('hex');
  for (const { name, traceId, spanId, parentSpanId } of spans) {
    relayed.push({ name, trace: hex(traceId), span: hex(spanId), parent: hex(parentSpanId) });
  }
  response.writeHead(200, { 'content-type': 'application/x-protobuf' }).end();
}

/** The guide's way to make spans part of the caller's trace, as it stands there. */
async function guidesTraced() {
  const guide = readFileSync(join(REPO, 'docs/guides/connecting-mcplocal.md'), 'utf8');
  const block = /```js\n(\/\/ traced\.mjs\n[\s\S]*?)```/.exec(guide);
  assert.ok(block, 'the guide has no example traced.mjs');
  const file = new URL('traced.mjs', import.meta.url);
  writeFileSync(file, block[1]);
  return (await import(file)).traced;
}

const tracer = trace.getTracer('mcplocal');

async function complete() {
  return tracer.startActiveSpan('ask the model', (span) => (span.end(), 'one two'));
}

async function stream() {
  return tracer.startActiveSpan('ask the model', (span) => (span.end(), ['one', ' two']));
}

/** The caller: OpenAI's path, and a trace of its own. */
async function call(body) {
  const response = await fetch(`${mcpd.url}/v1/chat/completions`, {
    method: 'POST',
    headers: mcpd.headers({ traceparent: `00-${CALLER.trace}-${CALLER.span}-01` }),
    body: JSON.stringify({ model: LLM, messages: [{ role: 'user', content: 'hi' }], ...body }),
  });
  assert.equal(response.status, 200);
  return response.text();
}

/** The one span of this name that the agent has exported. */
const exported = (name) => until(`the agent exports ${name}`, () => relayed.find((span) => span.name === name));

for (const [how, body] of [['plain', {}], ['streamed', { stream: true }]]) {
  test(`in a ${how} inference the provider's span is a child of the relay's chat span, in the caller's trace`, async () => {
    await call(body);
    const [span, ...others] = ours.getFinishedSpans();
    assert.deepEqual([span?.name, others], ['ask the model', []]);
    const [task, chat] = [await exported('process task'), await exported('chat test-model')];
    const context = span.spanContext();
    assert.deepEqual([context.traceId, task.trace, chat.trace], [CALLER.trace, CALLER.trace, CALLER.trace]);
    assert.equal(span.parentSpanContext.spanId, chat.span);
    assert.equal(chat.parent, task.span);
    // mcpd's own span is between the caller and the agent.
    for (const parent of [chat.span, task.parent]) assert.ok(![CALLER.span, ''].includes(parent));
  });
}
