/** The calls to the agent besides the session: watch it, and steer its providers. */
import { Client, credentials, type ClientUnaryCall, type ServiceError } from '@grpc/grpc-js';
import type { AgentStatus, UsageRow } from './agent-status.js';
import { checkNames } from './registrar-options.js';
import { checkedSocketPath, defaultSocketPath, targetOf, whyEnded } from './socket.js';
import { statusOf, usageOf } from './status.js';
import { codecOf, pathOf, uint32 } from './wire.js';

/** Where the agent is. */
export interface AgentOptions {
  /** The agent's socket: an absolute path or `unix:///path`; by default `~/.mcpctl/mcprelay.sock`. */
  socketPath?: string | undefined;
  /** Ends the call; what waits for it is rejected with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** How long a pause lasts, besides where the agent is. */
export interface PauseOptions extends AgentOptions {
  /** After so many milliseconds the pause ends by itself; by default it lasts until `resume`. */
  for?: number | undefined;
}

/** What `usage` is to sum up, besides where the agent is. */
export interface UsageOptions extends AgentOptions {
  /** By "caller", which is the default, "llm" or "day". */
  by?: 'caller' | 'llm' | 'day' | undefined;
  /** How many days, today included; by default all that are kept. */
  days?: number | undefined;
}

/** Why a call to the agent failed: there is none, it is stopping, or it knows no provider of that name. */
export class AgentError extends Error {
  override readonly name = 'AgentError';

  constructor(
    message: string,
    /** gRPC's status code: 14 where there is no agent, 5 for a name that nobody has pushed. */
    readonly code: number,
  ) {
    super(message);
  }
}

const watchRequest = codecOf<object>('WatchStatusRequest');
const watchResponse = codecOf<object>('WatchStatusResponse');
const pauseRequest = codecOf<{ provider_name: string; paused: boolean; until: string }>('SetPausedRequest');
const pauseResponse = codecOf<{ changed: string[] }>('SetPausedResponse');
const usageRequest = codecOf<{ by: string; days: number }>('GetUsageRequest');
const usageResponse = codecOf<{ rows: object[] }>('GetUsageResponse');
const USAGE_BY: readonly string[] = ['caller', 'llm', 'day'];
/** The last moment that RFC 3339 can write. */
const LAST_MOMENT = Date.parse('9999-12-31T00:00:00Z');

/**
 * The agent's whole status: at once, and then whenever it changes. It goes on until the loop that reads it is left, or ends
 * with an `AgentError` when the agent goes away.
 *
 * @throws TypeError for an option that does not exist or has a wrong value.
 */
export function watchAgent(options: AgentOptions = {}): AsyncGenerator<AgentStatus, void, undefined> {
  return watch(checkedTarget('watchAgent()', options), options.signal);
}

async function* watch(target: string, signal: AbortSignal | undefined): AsyncGenerator<AgentStatus, void, undefined> {
  signal?.throwIfAborted();
  const client = clientOf(target);
  const call = client.makeServerStreamRequest(pathOf('WatchStatus'), watchRequest.encode, watchResponse.decode, {});
  const abort = () => call.cancel();
  signal?.addEventListener('abort', abort, { once: true });
  try {
    for await (const status of call) yield statusOf(status as object);
    throw new AgentError(whyEnded('', target), 14);
  } catch (error) {
    throw signal?.aborted ? signal.reason : agentError(error, target);
  } finally {
    signal?.removeEventListener('abort', abort);
    call.on('error', () => {}); // What a call that was cancelled says.
    call.cancel();
    client.close();
  }
}

/**
 * Lets a provider, or without a name every one that is there or comes, take no new work until `resume`, or for a time. Running
 * work goes on. Gives the names of the providers that this changed.
 *
 * @throws AgentError where there is no agent, or nobody has pushed a provider of this name.
 */
export function pause(name?: string, options: PauseOptions = {}): Promise<string[]> {
  const { for: lasting, ...rest } = Object(options) as PauseOptions;
  if (lasting === undefined) return setPaused('pause()', name, true, '', rest);
  const end = Date.now() + (typeof lasting === 'number' ? lasting : NaN);
  if (!(lasting > 0 && end < LAST_MOMENT)) return Promise.reject(new TypeError('the option "for" of pause() is a number of milliseconds'));
  return setPaused('pause()', name, true, new Date(end).toISOString(), rest);
}

/** Lets a provider, or without a name every one, take work again; the rest is as for `pause`. */
export function resume(name?: string, options: AgentOptions = {}): Promise<string[]> {
  return setPaused('resume()', name, false, '', options);
}

async function setPaused(by: string, name = '', paused: boolean, until: string, options: AgentOptions): Promise<string[]> {
  if (typeof name !== 'string') throw new TypeError(`the first argument of ${by} is a provider's name`);
  const call = (client: Client, answer: Answer<{ changed: string[] }>) =>
    client.makeUnaryRequest(pathOf('SetPaused'), pauseRequest.encode, pauseResponse.decode, { provider_name: name, paused, until }, answer);
  return (await asked(by, options, ['socketPath', 'signal'], call)).changed;
}

/**
 * For whom this machine worked, the most first; days in their order.
 *
 * @throws AgentError where there is no agent, or it keeps no usage.
 */
export async function usage(options: UsageOptions = {}): Promise<UsageRow[]> {
  const { by = 'caller', days = 0 } = Object(options) as UsageOptions;
  if (!USAGE_BY.includes(by)) throw new TypeError('the option "by" of usage() is "caller", "llm" or "day"');
  if (!(typeof days === 'number' && days >= 0)) throw new TypeError('the option "days" of usage() is a number from 0');
  const request = { by: `USAGE_BY_${by.toUpperCase()}`, days: uint32(days) };
  const call = (client: Client, answer: Answer<{ rows: object[] }>) =>
    client.makeUnaryRequest(pathOf('GetUsage'), usageRequest.encode, usageResponse.decode, request, answer);
  return usageOf((await asked('usage()', options, ['socketPath', 'signal', 'by', 'days'], call)).rows);
}

type Answer<T> = (error: ServiceError | null, response?: T) => void;

/** What the agent answers to one call. */
async function asked<T>(by: string, options: AgentOptions, names: string[], start: (client: Client, answer: Answer<T>) => ClientUnaryCall): Promise<T> {
  const target = checkedTarget(by, options, names);
  const { signal } = options;
  signal?.throwIfAborted();
  const client = clientOf(target);
  const abort = new AbortController();
  try {
    return await new Promise((resolve, reject) => {
      const call = start(client, (error, response) => {
        if (error || !response) reject(signal?.aborted ? signal.reason : agentError(error, target));
        else resolve(response);
      });
      signal?.addEventListener('abort', () => call.cancel(), { once: true, signal: abort.signal });
    });
  } finally {
    abort.abort();
    client.close();
  }
}

function checkedTarget(by: string, options: AgentOptions, names = ['socketPath', 'signal']): string {
  if (typeof options !== 'object' || options === null) throw new TypeError(`the options of ${by} are an object`);
  checkNames(by, options, names);
  return targetOf(checkedSocketPath(options.socketPath ?? defaultSocketPath()));
}

/** A channel of its own: grpc-js would otherwise let it wait for as long as an earlier one had to. */
function clientOf(target: string): Client {
  const settings = { 'grpc.use_local_subchannel_pool': 1, 'grpc.max_receive_message_length': -1 };
  return new Client(target, credentials.createInsecure(), settings);
}

function agentError(error: unknown, target: string): AgentError {
  if (error instanceof AgentError) return error;
  const { code = 2, details = String(error) } = error as Partial<ServiceError>;
  return new AgentError(whyEnded(details, target), code);
}
