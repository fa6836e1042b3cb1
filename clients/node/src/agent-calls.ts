/** The calls to the agent besides the session: watch it, and steer its providers. */
import { Client, credentials, type ServiceError } from '@grpc/grpc-js';
import type { AgentStatus } from './agent-status.js';
import { checkNames } from './registrar-options.js';
import { checkedSocketPath, defaultSocketPath, targetOf, whyEnded } from './socket.js';
import { statusOf } from './status.js';
import { codecOf, pathOf } from './wire.js';

/** Where the agent is, for `watchAgent`, `pause` and `resume`. */
export interface AgentOptions {
  /** The agent's socket: an absolute path or `unix:///path`; by default `~/.mcpctl/mcprelay.sock`. */
  socketPath?: string | undefined;
  /** Ends the call; what waits for it is rejected with the signal's reason. */
  signal?: AbortSignal | undefined;
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
const pauseRequest = codecOf<{ provider_name: string; paused: boolean }>('SetPausedRequest');
const pauseResponse = codecOf<{ changed: string[] }>('SetPausedResponse');

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
 * Lets a provider, or without a name every one that is there or comes, take no new work until `resume`. Running work goes
 * on. Gives the names of the providers that this changed.
 *
 * @throws AgentError where there is no agent, or nobody has pushed a provider of this name.
 */
export function pause(name?: string, options: AgentOptions = {}): Promise<string[]> {
  return setPaused('pause()', name, true, options);
}

/** Lets a provider, or without a name every one, take work again; the rest is as for `pause`. */
export function resume(name?: string, options: AgentOptions = {}): Promise<string[]> {
  return setPaused('resume()', name, false, options);
}

async function setPaused(by: string, name = '', paused: boolean, options: AgentOptions): Promise<string[]> {
  if (typeof name !== 'string') throw new TypeError(`the first argument of ${by} is a provider's name`);
  const target = checkedTarget(by, options);
  const { signal } = options;
  signal?.throwIfAborted();
  const client = clientOf(target);
  const abort = new AbortController();
  try {
    return await new Promise((resolve, reject) => {
      const request = { provider_name: name, paused };
      const call = client.makeUnaryRequest(pathOf('SetPaused'), pauseRequest.encode, pauseResponse.decode, request, (error, response) => {
        if (error) reject(signal?.aborted ? signal.reason : agentError(error, target));
        else resolve(response?.changed ?? []);
      });
      signal?.addEventListener('abort', () => call.cancel(), { once: true, signal: abort.signal });
    });
  } finally {
    abort.abort();
    client.close();
  }
}

function checkedTarget(by: string, options: AgentOptions): string {
  if (typeof options !== 'object' || options === null) throw new TypeError(`the options of ${by} are an object`);
  checkNames(by, options, ['socketPath', 'signal']);
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
