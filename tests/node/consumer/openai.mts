// Compiled, not run: a task's options are what OpenAI's SDK takes, and its answers and chunks are what a provider gives.
import OpenAI from 'openai';
import type { Provider } from '@mcpctl/mcprelay-client';

const openai = new OpenAI({ baseURL: 'http://127.0.0.1:11434/v1', apiKey: 'none' });
const model = 'qwen3:8b';

export const provider: Provider = {
  name: 'laptop',
  type: 'openai',
  model,
  complete: (options) => openai.chat.completions.create({ ...options, model, stream: false }, { signal: options.signal }),
  stream: (options) => openai.chat.completions.create({ ...options, model, stream: true }, { signal: options.signal }),
};

export const message: Provider = {
  ...provider,
  async complete(options) {
    const { choices, usage } = await openai.chat.completions.create({ ...options, model, stream: false });
    const { content = '', tool_calls = [] } = choices[0]?.message ?? {};
    return { content, tool_calls: tool_calls.filter((call) => call.type === 'function'), finish_reason: choices[0]?.finish_reason, usage };
  },
};
