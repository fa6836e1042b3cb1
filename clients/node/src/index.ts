export { AgentError, pause, resume, usage, watchAgent, type AgentOptions, type PauseOptions, type UsageOptions } from './agent-calls.js';
export { textOf } from './messages.js';
export { startRegistrar, Registrar } from './registrar.js';
export type * from './agent-status.js';
export type * from './chat-body.js';
export type * from './types.js';
