// The program's wiring, tested by vitest against the package's double: no agent, no mcpd, no binary.
import { startFakeAgent, testOptions, type FakeAgent } from '@mcpctl/mcprelay-client/testing';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Registry, type CompletionOptions, type CompletionResult, type LlmProvider } from './registry.js';

const usage = { promptTokens: 3, completionTokens: 2 };
const toolCalls = [{ id: 'call_1', name: 'search', arguments: '{"q":"x"}' }, { id: 'call_2', name: 'read', arguments: '{}' }];

function provider(name: string, complete: LlmProvider['complete'], shared = true): LlmProvider {
  return { name, type: 'openai', model: `${name}-model`, shared, complete };
}

let agent: FakeAgent;
let registry: Registry;
let stop: () => Promise<void>;

beforeEach(async () => {
  agent = await startFakeAgent();
  registry = new Registry();
  const registrar = registry.publish(agent.socketPath);
  stop = () => registrar.stop();
});

afterEach(async () => {
  vi.useRealTimers();
  await stop();
  agent.close();
});

test('a result with tool calls, its reason and its usage arrives whole', async () => {
  const complete = vi.fn(async (_options: CompletionOptions): Promise<CompletionResult> => ({ content: '', toolCalls, finishReason: 'tool_calls', usage }));
  registry.add(provider('tools', complete));
  const task = await agent.offer('tools', { messages: [{ role: 'developer', content: [{ type: 'text', text: 'Be brief.' }] }], max_tokens: 5 });
  expect(await task.answer).toMatchObject({ outcome: 'completed', text: '', toolCalls, finishReason: 'tool_calls', usage });
  expect(complete).toHaveBeenCalledWith(expect.objectContaining({ messages: [{ role: 'system', content: 'Be brief.' }], model: 'tools-model', maxTokens: 5 }));
});

test('a caller who wants a stream gets the result, too', async () => {
  registry.add(provider('plain', async () => ({ content: 'Hello.', toolCalls: [], finishReason: 'length', usage })));
  const task = await agent.offer('plain', { stream: true });
  expect(await task.answer).toMatchObject({ text: 'Hello.', finishReason: 'length', usage });
});

test('what the registry adds and removes is pushed, with the owner\'s consent', async () => {
  registry.add(provider('shared', async () => Promise.reject(new Error('not asked'))));
  registry.add(provider('own', async () => Promise.reject(new Error('not asked')), false));
  await agent.until('both are pushed', () => agent.providers.length === 2);
  expect(agent.providers.map(({ name, publish }) => [name, publish])).toEqual([['shared', true], ['own', false]]);
  registry.remove('shared');
  await agent.until('one is withdrawn', () => agent.providers.length === 1);
});

test('a caller who goes away stops the provider', async () => {
  let signal: AbortSignal | undefined;
  registry.add(provider('slow', (options) => new Promise((_, reject) => {
    signal = options.signal;
    signal?.addEventListener('abort', () => reject(new Error('stopped')));
  })));
  const task = await agent.offer('slow');
  await vi.waitUntil(() => signal);
  task.cancel();
  expect((await task.answer).outcome).toBe('cancelled');
  expect(signal?.aborted).toBe(true);
});

test('an agent that goes and comes back finds the providers again', async () => {
  registry.add(provider('plain', async () => ({ content: 'Hello.', toolCalls: [], finishReason: 'stop', usage })));
  await agent.until('it is pushed', () => agent.providers.length === 1);
  agent.drop();
  await agent.start();
  expect((await (await agent.offer('plain')).answer).text).toBe('Hello.');
});

test('it works under fake timers', async () => {
  registry.add(provider('plain', async () => ({ content: 'Hello.', toolCalls: [], finishReason: 'stop', usage })));
  await agent.until('it is pushed', () => agent.providers.length === 1);
  vi.useFakeTimers();
  expect((await (await agent.offer('plain')).answer).text).toBe('Hello.');
});

test('a provider is called by hand with testOptions', async () => {
  const options = testOptions({ messages: [{ role: 'user', content: 'hi' }], temperature: 0 });
  expect([options.messages.length, options.temperature, options.signal.aborted]).toEqual([1, 0, false]);
});
