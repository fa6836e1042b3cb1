/** The agent's whole status at one moment, as `mcprelay status` shows it. */
import type { AgentLink, Verdict } from './types.js';

export interface AgentStatus {
  /** The link to mcpd. */
  agent: AgentLink;
  agentVersion: string;
  pid: number;
  /** RFC 3339. */
  startedAt: string;
  /** Where mcpd is, without credentials; empty while unknown. */
  mcpdUrl: string;
  /** The sticky id of the agent's session in mcpd; empty before the first registration. */
  providerSessionId: string;
  /** The programs that are connected. */
  sessions: AgentSession[];
  /** Every provider that was pushed. */
  providers: AgentProvider[];
  /** Tasks under way, oldest first. */
  tasks: AgentTask[];
  /** The last tasks that ended, newest first. */
  recent: EndedTask[];
  /** Counts since the agent started. */
  totals: AgentTotals;
  /** Whether the machine is kept from sleeping of idleness, because tasks are running. */
  awake: boolean;
}

export interface AgentSession {
  sessionId: string;
  clientId: string;
  clientVersion: string;
  /** RFC 3339. */
  connectedAt: string;
  /** How many providers its last set had. */
  providers: number;
  /** Whether it has said goodbye. */
  draining: boolean;
}

export interface AgentProvider {
  provider: {
    name: string;
    type: string;
    model: string;
    tier: string;
    description: string;
    publish: boolean;
    maxInFlight?: number;
    state: 'ready' | 'loading' | 'unavailable';
    stateDetail: string;
    features: string[];
    contextTokens?: number;
    maxOutputTokens?: number;
  };
  sessionId: string;
  verdict: Verdict;
  detail: string;
  running: number;
  queued: number;
  maxInFlight: number;
  maxQueued: number;
  paused: boolean;
  /** When the owner's pause ends by itself, RFC 3339; empty where it does not. `detail` says what paused it. */
  pausedUntil: string;
}

export interface AgentTask {
  taskId: string;
  llmName: string;
  state: 'queued' | 'running' | 'streaming' | 'cancelling' | 'delivering';
  ageMs: number;
  /** Absent before the first token. */
  firstTokenMs?: number;
  chunks: number;
  /** Who called, if mcpd says. */
  caller: string;
  streaming: boolean;
}

export interface EndedTask {
  taskId: string;
  llmName: string;
  /** RFC 3339. */
  endedAt: string;
  /** "ok", "cancelled", or the error's code. */
  outcome: string;
  durationMs: number;
  firstTokenMs?: number;
  usage: { inputTokens?: number; outputTokens?: number } | null;
  chunks: number;
  caller: string;
  /** Why it failed, for the owner; empty where it did not. */
  reason: string;
}

/** What was done for one caller, by one LLM or on one day. */
export interface UsageRow {
  /** The caller, the LLM or the day (YYYY-MM-DD); empty for callers whom mcpd does not name. */
  key: string;
  tasksOk: number;
  tasksFailed: number;
  tasksCancelled: number;
  /** As far as providers reported them. */
  inputTokens: number;
  outputTokens: number;
  inferenceSeconds: number;
}

export interface AgentTotals {
  tasks: number;
  tasksOk: number;
  tasksFailed: number;
  tasksCancelled: number;
  tasksOverloaded: number;
  chunks: number;
  posts: number;
  lateChunks: number;
  reconnects: number;
  tasksRepeated: number;
}
