export { startRegistrar, Registrar } from './registrar.js';
export type * from './types.js';
