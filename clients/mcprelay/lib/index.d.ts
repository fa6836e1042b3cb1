/// <reference lib="esnext.disposable" />

/** The programs of this package. */
export type ProgramName = 'mcprelay' | 'fake-mcpd';

/**
 * The file of a program: the one that `$MCPRELAY_BINARY` (`$FAKE_MCPD_BINARY`) names, else the one of this platform's package,
 * else the one on the PATH.
 *
 * @throws {ProgramNotFoundError} with what was looked for and what to do
 */
export function binaryPath(name: ProgramName): string;

/** No program for this machine was found. */
export class ProgramNotFoundError extends Error {
  readonly code: 'MCPRELAY_PROGRAM_NOT_FOUND';
}

/** How a program ended. */
export interface Exit {
  code: number | null;
  signal: string | null;
}

/** A program that was started; it is killed when this process ends. */
interface Started extends AsyncDisposable {
  readonly pid: number;
  readonly exited: Promise<Exit>;
  /** The last 200 lines of its log. */
  log(): string;
}

interface StartOptions {
  /** More of the command line. */
  args?: string[];
  /** Variables besides those of this process. */
  env?: Record<string, string | undefined>;
  /** Longest wait until it serves; 10 s by default. */
  startTimeoutMs?: number;
}

export interface AgentOptions extends StartOptions {
  /** Where mcpd is, as of `startFakeMcpd`; without it, credentials are read from the home as always. */
  mcpd?: { url: string; token: string };
  /** The agent's folder: with `mcpd` a temporary one by default, otherwise `$MCPRELAY_HOME` or `~/.mcpctl`. */
  home?: string;
  /** Written to `config.json` in the home. */
  config?: object;
  /** Also serve the providers of `config.json`. */
  provide?: boolean;
}

export interface Agent extends Started {
  readonly home: string;
  readonly socketPath: string;
  /** Waits until mcpd lists a provider; fails at once where waiting is useless. 20 s by default. */
  online(options?: { timeoutMs?: number }): Promise<void>;
  /** Lets running tasks finish, for `graceMs` (150 s) at most, and ends it. */
  stop(options?: { graceMs?: number }): Promise<Exit>;
}

/** Starts an agent; it serves its socket when the promise is fulfilled. */
export function startAgent(options?: AgentOptions): Promise<Agent>;

export interface FakeMcpdOptions extends StartOptions {
  /** What the verdict holds the agent to; `chosen`, the whole contract, by default. */
  profile?: 'given' | 'chosen';
  /** The one token that is accepted; a random one by default. */
  token?: string;
  /** Faults from the start on, as in `lose-reply,call=result`. */
  faults?: string[];
  /** Makes every id follow from it. */
  seed?: number;
  /** The verdict finds fault with fewer tasks. */
  expectTasks?: number;
}

/** A fault as fake-mcpd's README lists them: `drop,broken=true`, or `{ kind: 'drop', broken: true }`. */
export type Fault = string | { kind: string; [field: string]: unknown };

export interface Verdict {
  ok: boolean;
  count: number;
  counts: { registers: number; heartbeats: number; channels: number; tasks: number; parts: number };
  violations: { atMs: number; seq: number; rule: string; subject: string; detail: string }[];
}

export interface FakeMcpd extends Started {
  readonly url: string;
  readonly token: string;
  /** What the agent under test did wrong so far. */
  verdict(): Promise<Verdict>;
  /** Injects faults. */
  fault(...faults: Fault[]): Promise<void>;
  /** Ends every lasting fault. */
  clearFaults(): Promise<void>;
  /** Sessions, LLMs and tasks under way, as `GET /_fake/state`. */
  state(): Promise<unknown>;
  /** Requests and events from number `since` on, as `GET /_fake/journal`. */
  journal(since?: number): Promise<{ dropped: number; entries: { seq: number; kind: string; [field: string]: unknown }[] }>;
  stop(): Promise<Exit>;
}

/** Starts an mcpd for a test on a free port of 127.0.0.1. */
export function startFakeMcpd(options?: FakeMcpdOptions): Promise<FakeMcpd>;
