/** Keeps a session with the agent for ever: opens one, waits for its end, waits a little, opens the next. */
import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { homedir } from 'node:os';
import { basename, extname, join, resolve } from 'node:path';
import { Backoff, REPLACED_MS } from './backoff.js';
import { Session, type Host, type SessionEnd } from './session.js';
import type { AgentLink, Logger, Provider, ProviderVerdict } from './types.js';
import type { RegistrarOptions, RegistrarState, RegistrarStatus, StopOptions } from './types.js';
import { pause } from './waiting.js';
import { enumWord, uint32, type AgentStatus, type WireProvider } from './wire.js';

/** The bridge's own limit: 32 MiB for a request and 1 MiB for what goes with it. */
const MAX_MESSAGE_BYTES = 33 * 1024 * 1024;
/** How long `stop()` waits for running tasks: what service managers give a program before they kill it is 90 s or more. */
const STOP_GRACE_MS = 30_000;
/** The longest time that a timer of Node's can wait, about 25 days; it takes a longer one for none at all. */
const LONGEST_TIMER_MS = 0x7fff_ffff;
const STATES: readonly unknown[] = ['ready', 'loading', 'unavailable'];
const VERSION = 'mcprelay-client/0.1.0';

/**
 * Publishes this program's providers through the local agent, from now until `stop()`. Whether there is an agent makes no
 * difference to the caller: without one it tries again for ever, at most 5 s apart.
 *
 * @throws TypeError where `providers` is no list of providers; never because of the agent.
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
    this.providers = checked(options.providers);
    this.log = quietly(options.logger ?? {});
    this.host = {
      target: targetOf(options.socketPath ?? join(homedir(), '.mcpctl', 'mcprelay.sock')),
      hello: {
        client_id: options.clientId ?? defaultClientId(),
        client_version: options.clientVersion ?? VERSION,
        max_message_bytes: uint32(options.maxMessageBytes ?? MAX_MESSAGE_BYTES),
      },
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
    this.providers = checked(providers);
    this.generation += 1;
    this.session?.pushProviders();
  }

  /** Takes no further tasks, lets the running ones finish within the grace, and closes. Any further call waits with the first. */
  stop(options: StopOptions = {}): Promise<void> {
    const graceMs = Math.min(uint32(options.graceMs ?? STOP_GRACE_MS), LONGEST_TIMER_MS);
    this.stopping ??= this.shutDown(graceMs, options.reason ?? 'This program is stopping.');
    return this.stopping;
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

function checked(providers: readonly Provider[]): readonly Provider[] {
  if (!Array.isArray(providers)) throw new TypeError('providers is not an array');
  for (const provider of providers as readonly Provider[]) {
    const wrong = whatIsWrong(provider);
    if (wrong) throw new TypeError(`provider "${String(provider?.name)}" has ${wrong}`);
  }
  return [...providers];
}

/** What types forbid and JavaScript lets through, where it would be taken for something else or keep the set from being pushed. */
function whatIsWrong(provider: Provider): string | undefined {
  if (typeof provider?.complete !== 'function') return 'no function complete(options)';
  const { state = 'ready', features = [], maxInFlight = 0, contextTokens = 0, maxOutputTokens = 0 } = provider;
  if (!STATES.includes(state)) return 'a state that is not "ready", "loading" or "unavailable"';
  if (!Array.isArray(features)) return 'features that are not an array';
  const numbers = Object.entries({ maxInFlight, contextTokens, maxOutputTokens });
  const [name] = numbers.find(([, number]) => !(typeof number === 'number' && number >= 0)) ?? [];
  return name && `a ${name} that is not a number from 0`;
}

/** grpc-js understands unix:///absolute only; the first part of unix://relative gets lost. */
function targetOf(socketPath: string): string {
  return `unix://${resolve(socketPath.replace(/^unix:(\/\/(?=\/))?/, ''))}`;
}

/** The same at every start of this program from this place, and different from other programs'. */
function defaultClientId(): string {
  const script = process.argv[1] ?? process.execPath;
  const digest = createHash('sha256').update(resolve(script)).digest('hex').slice(0, 12);
  return `${basename(script, extname(script))}-${digest}`;
}

function wireProvider(provider: Provider): WireProvider {
  const { maxInFlight, contextTokens, maxOutputTokens } = provider;
  return {
    name: String(provider.name ?? ''),
    type: String(provider.type ?? ''),
    model: String(provider.model ?? ''),
    tier: provider.tier ?? '',
    description: provider.description ?? '',
    // Consent is the word true and nothing that is merely like it.
    publish: provider.publish === true,
    ...(maxInFlight !== undefined && { max_in_flight: uint32(maxInFlight) }),
    state: `PROVIDER_STATE_${(provider.state ?? 'ready').toUpperCase()}`,
    state_detail: provider.stateDetail ?? '',
    features: provider.features ?? [],
    ...(contextTokens !== undefined && { context_tokens: uint32(contextTokens) }),
    ...(maxOutputTokens !== undefined && { max_output_tokens: uint32(maxOutputTokens) }),
  };
}

function agentLink(status: AgentStatus): AgentLink {
  return {
    state: enumWord(status.state, 'AGENT_STATE_'),
    detail: status.detail,
    ...(status.next_attempt_ms !== undefined && { nextAttemptMs: status.next_attempt_ms }),
  };
}

function verdictOf({ name, verdict, error }: Session['verdicts'][number]): ProviderVerdict {
  return { name, verdict: enumWord(verdict, 'VERDICT_'), ...(error && { reason: error.message }) };
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
