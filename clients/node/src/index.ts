export { AgentError, pause, resume, watchAgent, type AgentOptions } from './agent-calls.js';
export { textOf } from './messages.js';
export { startRegistrar, Registrar } from './registrar.js';
export type * from './agent-status.js';
export type * from './chat-body.js';
export type * from './types.js';
