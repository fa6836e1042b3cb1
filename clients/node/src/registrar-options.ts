/** The registrar's options, checked at once: what is wrong would otherwise show as a client that waits for ever. */
import { createHash } from 'node:crypto';
import { basename, extname, resolve } from 'node:path';
import { version } from './generated/version.js';
import { checkedProviders } from './providers.js';
import { checkedSocketPath, defaultSocketPath } from './socket.js';
import type { Logger, Provider, RegistrarOptions } from './types.js';
import { uint32 } from './wire.js';

/** The bridge's own limit: 32 MiB for a request and 1 MiB for what goes with it. */
const MAX_MESSAGE_BYTES = 33 * 1024 * 1024;
/** Longest client id and client version that the agent takes. */
const LONGEST_NAME_BYTES = 128;

export interface CheckedOptions {
  providers: readonly Provider[];
  socketPath: string;
  clientId: string;
  clientVersion: string;
  maxMessageBytes: number;
  logger: Logger;
}

const NAMES: Record<keyof RegistrarOptions, true> = {
  providers: true, socketPath: true, clientId: true, clientVersion: true, logger: true, maxMessageBytes: true,
};

/** @throws TypeError that names the option and what is wrong with it. */
export function checkedOptions(options: RegistrarOptions): CheckedOptions {
  if (typeof options !== 'object' || options === null) throw new TypeError('startRegistrar() needs an object with providers');
  checkNames('startRegistrar()', options, Object.keys(NAMES));
  const { providers, socketPath = defaultSocketPath(), logger = {} } = options;
  const { clientId = defaultClientId(), clientVersion = `mcprelay-client/${version}` } = options;
  const { maxMessageBytes = MAX_MESSAGE_BYTES } = options;
  if (typeof logger !== 'object' || logger === null) throw new TypeError('logger is not an object with functions, such as console');
  if (!(typeof maxMessageBytes === 'number' && maxMessageBytes > 0)) throw new TypeError('maxMessageBytes is not a number above 0');
  return {
    providers: checkedProviders(providers),
    socketPath: checkedSocketPath(socketPath),
    clientId: checkedName('clientId', clientId),
    clientVersion: checkedName('clientVersion', clientVersion),
    maxMessageBytes: uint32(maxMessageBytes),
    logger,
  };
}

/** @throws TypeError for an option that does not exist. */
export function checkNames(of: string, options: object, names: readonly string[]): void {
  const wrong = Object.keys(options).find((name) => !names.includes(name));
  if (wrong !== undefined) throw new TypeError(`${of} has no option "${wrong}"; its options are ${names.join(', ')}`);
}

function checkedName(option: string, name: unknown): string {
  if (typeof name !== 'string' || name === '') throw new TypeError(`${option} is not a text`);
  if (Buffer.byteLength(name) <= LONGEST_NAME_BYTES) return name;
  throw new TypeError(`${option} has ${Buffer.byteLength(name)} bytes; ${LONGEST_NAME_BYTES} are the most`);
}

/** The same at every start of this program from this place, and different from other programs'. */
function defaultClientId(): string {
  const script = process.argv[1] ?? process.execPath;
  const digest = createHash('sha256').update(resolve(script)).digest('hex').slice(0, 12);
  return `${basename(script, extname(script)).slice(0, 64)}-${digest}`;
}
