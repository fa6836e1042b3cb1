/** Keeps a session with the agent for ever: opens one, waits for its end, waits a little, opens the next. */
import { EventEmitter } from 'node:events';
import { Backoff, REPLACED_MS } from './backoff.js';
import { asyncDispose } from './dispose.js';
import { checkedOptions } from './registrar-options.js';
import { checkedProviders, wireProvider } from './providers.js';
import { Session, type Host, type SessionEnd } from './session.js';
import { agentLink, verdictOf } from './status.js';
import { targetOf } from './socket.js';
import type { Logger, Provider, RegistrarOptions, RegistrarState, RegistrarStatus, StopOptions } from './types.js';
import { pause } from './waiting.js';
import { uint32 } from './wire.js';

/** How long `stop()` waits for running tasks: what service managers give a program before they kill it is 90 s or more. */
const STOP_GRACE_MS = 30_000;
/** The longest time that a timer of Node's can wait, about 25 days; it takes a longer one for none at all. */
const LONGEST_TIMER_MS = 0x7fff_ffff;

/**
 * Publishes this program's providers through the local agent, from now until `stop()`. Whether there is an agent makes no
 * difference to the caller: without one it tries again for ever, at most 5 s apart.
 *
 * @throws TypeError for an option that does not exist or has a wrong value; never because of the agent.
 */
export function startRegistrar(options: RegistrarOptions): Registrar {
  return new Registrar(options);
}

/** A running registrar. It emits "status" whenever anything in its RegistrarStatus but `runningTasks` changes, and nothing else. */
export class Registrar extends EventEmitter<{ status: [RegistrarStatus] }> {
  private readonly host: Host;
  private readonly log: Required<Logger>;
  private readonly backoff = new Backoff();
  private readonly stopSignal = new AbortController();
  private readonly loop: Promise<void>;
  private providers: readonly Provider[];
  private generation = 1;
  private session: Session | undefined;
  private state: RegistrarState = 'connecting';
  private detail = '';
  private nextAttemptMs: number | undefined;
  private stopping: Promise<void> | undefined;

  constructor(options: RegistrarOptions) {
    super();
    const { providers, socketPath, clientId, clientVersion, maxMessageBytes, logger } = checkedOptions(options);
    this.providers = providers;
    this.log = quietly(logger);
    this.host = {
      target: targetOf(socketPath),
      hello: { client_id: clientId, client_version: clientVersion, max_message_bytes: maxMessageBytes },
      log: this.log,
      snapshot: () => ({ generation: this.generation, providers: this.providers.map(wireProvider) }),
      provider: (name) => this.providers.find((provider) => provider.name === name),
      changed: () => this.changed(),
    };
    this.loop = this.run();
  }

  /** Where it stands now. */
  get status(): RegistrarStatus {
    const { session } = this;
    return {
      state: this.state,
      detail: this.detail,
      ...(this.nextAttemptMs !== undefined && { nextAttemptMs: this.nextAttemptMs }),
      ...(session?.welcome && { sessionId: session.welcome.session_id, agentVersion: session.welcome.agent_version }),
      ...(session?.agent && { agent: agentLink(session.agent) }),
      providers: (session?.verdicts ?? []).map(verdictOf),
      runningTasks: session?.runningTasks ?? 0,
    };
  }

  /** Replaces the whole set. A provider that is absent is withdrawn; its running tasks go on. */
  update(providers: readonly Provider[]): void {
    this.providers = checkedProviders(providers);
    this.generation += 1;
    this.session?.pushProviders();
  }

  /** Takes no further tasks, lets the running ones finish within the grace, and closes. Any further call waits with the first. */
  stop(options: StopOptions = {}): Promise<void> {
    const graceMs = Math.min(uint32(options.graceMs ?? STOP_GRACE_MS), LONGEST_TIMER_MS);
    this.stopping ??= this.shutDown(graceMs, options.reason ?? 'This program is stopping.');
    return this.stopping;
  }

  /** For `await using`: the same as `stop()`. */
  [asyncDispose](): Promise<void> {
    return this.stop();
  }

  private async shutDown(graceMs: number, reason: string): Promise<void> {
    this.become('stopping', reason);
    this.stopSignal.abort();
    await this.session?.drain(graceMs, reason);
    await this.loop;
    this.become('stopped', reason);
  }

  private async run(): Promise<void> {
    // The caller gets the registrar, and can listen, before anything happens.
    await Promise.resolve();
    while (!this.stopSignal.signal.aborted) {
      const end = await this.oneSession();
      if (this.stopSignal.signal.aborted) return;
      const waitMs = end.replaced ? REPLACED_MS : this.backoff.next(end.livedMs);
      this.become(end.replaced ? 'replaced' : 'waiting', end.detail, waitMs);
      await pause(waitMs, this.stopSignal.signal);
    }
  }

  private async oneSession(): Promise<SessionEnd> {
    try {
      this.session = new Session(this.host);
      return await this.session.ended;
    } catch (error) {
      return { replaced: false, detail: String(error), livedMs: 0 };
    } finally {
      this.session = undefined;
    }
  }

  private changed(): void {
    if (this.state !== 'stopping' && this.state !== 'connected') return this.become('connected', '');
    this.announce();
  }

  private become(state: RegistrarState, detail: string, nextAttemptMs?: number): void {
    // An agent that is not there is normal, and is one line, not one at every attempt.
    if (state !== this.state || detail !== this.detail) this.log[levelOf(state)](lineOf(state, detail));
    this.state = state;
    this.detail = detail;
    this.nextAttemptMs = nextAttemptMs;
    this.announce();
  }

  private announce(): void {
    try {
      this.emit('status', this.status);
    } catch (error) {
      this.log.error(`a listener of "status" threw: ${String(error)}`);
    }
  }
}

function levelOf(state: RegistrarState): 'info' | 'warn' {
  return state === 'replaced' ? 'warn' : 'info';
}

function lineOf(state: RegistrarState, detail: string): string {
  return detail ? `mcprelay: ${state}: ${detail}` : `mcprelay: ${state}`;
}

/** A logger with every level, none of which can throw into our work. */
function quietly(logger: Logger): Required<Logger> {
  const level = (name: keyof Logger) => (message: string) => {
    try {
      logger[name]?.(message);
    } catch {
      // A broken logger is its owner's to notice; the tasks go on.
    }
  };
  return { debug: level('debug'), info: level('info'), warn: level('warn'), error: level('error') };
}
