/** What the agent says of itself, as this package's callers read it. */
import type { AgentStatus, UsageRow } from './agent-status.js';
import type { AgentLink, AgentState, ProviderVerdict, Verdict } from './types.js';
import type { ProviderSnapshotResult, WireAgentStatus } from './wire.js';

export function agentLink(status: WireAgentStatus): AgentLink {
  return {
    state: enumWord(status.state, 'AGENT_STATE_') as AgentState,
    detail: status.detail,
    advice: status.advice,
    ...(status.next_attempt_ms !== undefined && { nextAttemptMs: status.next_attempt_ms }),
  };
}

export function verdictOf({ name, verdict, error }: ProviderSnapshotResult['verdicts'][number]): ProviderVerdict {
  return { name, verdict: enumWord(verdict, 'VERDICT_') as Verdict, ...(error && { reason: error.message }) };
}

/** "online" of "AGENT_STATE_ONLINE"; a value of a newer agent, which is a number, as it is. */
function enumWord(value: string, prefix: string): string {
  const text = String(value);
  return text.startsWith(prefix) ? text.slice(prefix.length).toLowerCase() : text;
}

/** The words with which the proto's enums begin. */
const PREFIX = /^(AGENT_STATE|PROVIDER_STATE|TASK_STATE|VERDICT)_(?=[A-Z_]+$)/;

/** A status of the agent with names in JavaScript's spelling; what a newer agent adds is in it, too. */
export function statusOf(message: object): AgentStatus {
  return renamed(message) as AgentStatus;
}

/** Rows of usage with names in JavaScript's spelling. */
export function usageOf(rows: object[]): UsageRow[] {
  return renamed(rows) as UsageRow[];
}

function renamed(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item));
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).filter(([name]) => !name.startsWith('_')).map(([name, field]) => [camel(name), renamed(field, name)]));
  }
  // Only what is an enum: a name or a text may be anything.
  return (key === 'state' || key === 'verdict') && typeof value === 'string' ? value.replace(PREFIX, '').toLowerCase() : value;
}

function camel(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
