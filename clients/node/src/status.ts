/** What the agent says of itself, as this package's callers read it. */
import type { AgentLink, AgentState, ProviderVerdict, Verdict } from './types.js';
import type { ProviderSnapshotResult, WireAgentStatus } from './wire.js';

export function agentLink(status: WireAgentStatus): AgentLink {
  return {
    state: enumWord(status.state, 'AGENT_STATE_') as AgentState,
    detail: status.detail,
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
