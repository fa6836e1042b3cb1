/**
 * An OpenAI chat-completions body as far as programs read it, in types that OpenAI's SDK takes as its own:
 * `openai.chat.completions.create({ ...options, model })`.
 */
export interface ChatBody {
  /** The name the caller used: the virtual LLM's, not your provider's model. */
  model: string;
  messages: ChatMessage[];
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
  max_tokens?: number;
  max_completion_tokens?: number;
  temperature?: number;
  top_p?: number;
  n?: number;
  stop?: string | string[];
  seed?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  logprobs?: boolean;
  top_logprobs?: number;
  logit_bias?: Record<string, number>;
  user?: string;
  tools?: ChatTool[];
  tool_choice?: 'none' | 'auto' | 'required' | { type: 'function'; function: { name: string } };
  parallel_tool_calls?: boolean;
  response_format?:
    | { type: 'text' }
    | { type: 'json_object' }
    | { type: 'json_schema'; json_schema: { name: string; description?: string; schema?: Record<string, unknown>; strict?: boolean } };
  reasoning_effort?: 'minimal' | 'low' | 'medium' | 'high';
}

export interface ChatTool {
  type: 'function';
  function: { name: string; description?: string; parameters?: Record<string, unknown>; strict?: boolean };
}

/** One message. `textOf(message)` is its text, whichever way its content is written. */
export type ChatMessage =
  | { role: 'developer' | 'system'; content: string | TextPart[]; name?: string }
  | { role: 'user'; content: string | UserPart[]; name?: string }
  | { role: 'assistant'; content?: string | (TextPart | RefusalPart)[] | null; name?: string; refusal?: string | null; tool_calls?: ChatToolCall[] }
  | { role: 'tool'; content: string | TextPart[]; tool_call_id: string };

export interface ChatToolCall {
  id: string;
  type: 'function';
  function: { name: string; arguments: string };
}

export interface TextPart {
  type: 'text';
  text: string;
}

export interface RefusalPart {
  type: 'refusal';
  refusal: string;
}

export type UserPart =
  | TextPart
  | { type: 'image_url'; image_url: { url: string; detail?: 'auto' | 'low' | 'high' } }
  | { type: 'input_audio'; input_audio: { data: string; format: 'wav' | 'mp3' } }
  | { type: 'file'; file: { file_data?: string; file_id?: string; filename?: string } };
