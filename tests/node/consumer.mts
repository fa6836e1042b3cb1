// Compiled, not run: the installed package's types, as an ESM and (through consumer.cts) a CommonJS program see them.
import { startRegistrar, type CompletionOptions, type Provider, type RegistrarStatus } from '@mcpctl/mcprelay-client';

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
    yield { id: 'c', choices: [{ index: 0, delta: {} }] };
    yield Buffer.from('{}');
    yield { raw: options.traceContext['traceparent'] ?? '{}' };
  },
};

const registrar = startRegistrar({ providers: [plain, streaming], logger: console });
registrar.on('status', (status: RegistrarStatus) => console.log(status.state, status.agent?.state));
// @ts-expect-error There is no other event.
registrar.on('nothing', () => {});
// @ts-expect-error A provider must be able to answer.
registrar.update([{ name: 'a', type: 't', model: 'm' }]);
const stopped: Promise<void> = registrar.stop({ graceMs: 1 });
void stopped;
