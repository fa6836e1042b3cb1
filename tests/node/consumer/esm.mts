// Compiled, not run: the installed package's types as an ESM program sees them; commonjs.cts is the CommonJS one.
import { pause, resume, startRegistrar, watchAgent } from '@mcpctl/mcprelay-client';
import type { AgentState, CompletionOptions, Provider, RegistrarStatus, Verdict } from '@mcpctl/mcprelay-client';
import { startFakeAgent, testOptions } from '@mcpctl/mcprelay-client/testing';

const plain: Provider = { name: 'a', type: 't', model: 'm', complete: (options) => String(options.messages.length) };

const streaming: Provider = {
  ...plain,
  publish: true,
  async complete(options: CompletionOptions) {
    return { content: options.model, usage: { prompt_tokens: 1 } };
  },
  async *stream(options, signal) {
    if (signal.aborted || options.signal.aborted) return;
    yield 'text';
    yield { tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: '{}' } }] };
    yield { toolCalls: [{ id: 'c', name: 'f', arguments: { a: 1 } }], finishReason: 'tool_calls' };
    yield { id: 'c', choices: [{ index: 0, delta: {} }] };
    yield Buffer.from('{}');
    yield { raw: options.traceContext['traceparent'] ?? '{}' };
  },
};

/** The names that this is not: the compiler says so before the program does. */
export const wrong: Provider[] = [
  // @ts-expect-error An answer's text is its content.
  { ...plain, complete: async () => ({ text: 'x' }) },
  // @ts-expect-error A result of another shape.
  { ...plain, complete: async () => ({ message: { content: 'x' } }) },
  // @ts-expect-error It is finishReason.
  { ...plain, complete: async () => ({ content: 'x', stopReason: 'stop' }) },
  // @ts-expect-error A tool call has arguments.
  { ...plain, complete: async () => ({ content: '', toolCalls: [{ id: 'c', name: 'f', args: {} }] }) },
  // @ts-expect-error It is promptTokens.
  { ...plain, complete: async () => ({ content: 'x', usage: { prompt: 1 } }) },
  // @ts-expect-error A number is no answer.
  { ...plain, complete: async () => 7 },
];

const registrar = startRegistrar({ providers: [plain, streaming], logger: console });
registrar.on('status', (status: RegistrarStatus) => {
  const link: AgentState | undefined = status.agent?.state;
  const verdicts: Verdict[] = status.providers.map(({ verdict }) => verdict);
  console.log(status.state, link, verdicts);
});
// @ts-expect-error There is no such state.
export const never = registrar.status.agent?.state === 'on-line';
// @ts-expect-error There is no other event.
registrar.on('nothing', () => {});
// @ts-expect-error A provider must be able to answer.
registrar.update([{ name: 'a', type: 't', model: 'm' }]);
// @ts-expect-error There is no such option.
startRegistrar({ providers: [], sokcetPath: '/a' });

export async function steered(): Promise<void> {
  await using agent = await startFakeAgent({ verdict: () => ({ refused: 'no' }) });
  await using own = startRegistrar({ providers: [streaming], socketPath: agent.socketPath });
  const changed: string[] = [...(await pause('a')), ...(await resume())];
  for await (const { agent: link, providers } of watchAgent({ signal: AbortSignal.timeout(1) })) {
    console.log(link.state, providers[0]?.provider.name, changed, own.status.state);
  }
  const { text, error } = await (await agent.offer('a', { stream: true })).answer;
  console.log(text, error?.code, await streaming.complete(testOptions(), new AbortController().signal));
}

const stopped: Promise<void> = registrar.stop({ graceMs: 1 });
void stopped;
