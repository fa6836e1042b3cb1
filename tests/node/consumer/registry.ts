// What a TypeScript code base has: providers behind an interface of its own, in a registry, and a few lines that publish them.
import { startRegistrar, textOf, type CompletionOptions as CallersOptions, type Provider, type Registrar } from '@mcpctl/mcprelay-client';

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface CompletionOptions {
  messages: ChatMessage[];
  model: string;
  maxTokens?: number;
  signal?: AbortSignal;
}

export interface CompletionResult {
  content: string;
  toolCalls: ToolCall[];
  finishReason: 'stop' | 'length' | 'tool_calls';
  usage: { promptTokens: number; completionTokens: number };
}

export interface LlmProvider {
  readonly name: string;
  readonly type: string;
  readonly model: string;
  /** Whether the owner lets others use it. */
  readonly shared: boolean;
  complete(options: CompletionOptions): Promise<CompletionResult>;
}

/** Keeps the providers, and the registrar up to date with them. */
export class Registry {
  private readonly providers = new Map<string, LlmProvider>();
  private registrar: Registrar | undefined;

  add(provider: LlmProvider): void {
    this.providers.set(provider.name, provider);
    this.registrar?.update(this.published());
  }

  remove(name: string): void {
    this.providers.delete(name);
    this.registrar?.update(this.published());
  }

  publish(socketPath: string): Registrar {
    this.registrar = startRegistrar({ socketPath, providers: this.published() });
    return this.registrar;
  }

  private published(): Provider[] {
    return [...this.providers.values()].map((provider) => ({
      name: provider.name,
      type: provider.type,
      model: provider.model,
      publish: provider.shared,
      complete: (options) => provider.complete(ownOptions(options, provider.model)),
    }));
  }
}

function ownOptions(options: CallersOptions, model: string): CompletionOptions {
  const messages = options.messages.map((message): ChatMessage => {
    return { role: message.role === 'developer' ? 'system' : message.role, content: textOf(message) };
  });
  const maxTokens = options.max_completion_tokens ?? options.max_tokens;
  return { messages, model, signal: options.signal, ...(maxTokens !== undefined && { maxTokens }) };
}
