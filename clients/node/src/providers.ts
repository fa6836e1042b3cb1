/** The program's set of providers: checked, and as it is pushed. */
import type { Provider, Sharing } from './types.js';
import { uint32, wellFormed, type WireProvider, type WireSharing } from './wire.js';

const STATES: readonly unknown[] = ['ready', 'loading', 'unavailable'];
/** The fields of a provider; it may have others of its own. */
const FIELDS: readonly string[] = Object.keys({
  name: 0, type: 0, model: 0, publish: 0, sharing: 0, tier: 0, description: 0, maxInFlight: 0, state: 0, stateDetail: 0, features: 0,
  contextTokens: 0, maxOutputTokens: 0, complete: 0, stream: 0,
} satisfies Record<keyof Provider, 0>);

/** @throws TypeError that names the provider and what is wrong with it. */
export function checkedProviders(providers: readonly Provider[]): readonly Provider[] {
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
  if (!['undefined', 'function'].includes(typeof provider.stream)) return 'a stream that is not a function';
  const { state = 'ready', features = [], maxInFlight = 0, contextTokens = 0, maxOutputTokens = 0 } = provider;
  if (!STATES.includes(state)) return 'a state that is not "ready", "loading" or "unavailable"';
  if (!Array.isArray(features)) return 'features that are not an array';
  const rule = rulesOf(provider).map(unclear).find((wrong) => wrong !== undefined);
  if (rule) return rule;
  const numbers = Object.entries({ maxInFlight, contextTokens, maxOutputTokens });
  const [name] = numbers.find(([, number]) => !(typeof number === 'number' && number >= 0)) ?? [];
  return name ? `a ${name} that is not a number from 0` : misspelt(provider);
}

function rulesOf({ sharing }: Provider): readonly Sharing[] {
  return Array.isArray(sharing) ? sharing : sharing === undefined || sharing === null ? [] : [sharing as Sharing];
}

/** What is wrong with a rule. To leave out what is not understood would share against the owner's will. */
function unclear(rule: Sharing): string | undefined {
  if (typeof rule !== 'object' || rule === null) return 'a sharing that is not an object';
  const { hours, onBattery, whenIdleFor } = rule;
  const texts = Array.isArray(hours) && hours.length > 0 && hours.every((hour) => typeof hour === 'string');
  if (hours != null && !texts) return 'sharing.hours that are not a list of windows';
  if (onBattery != null && typeof onBattery !== 'boolean') return 'a sharing.onBattery that is neither true nor false';
  return whenIdleFor != null && idleMs(whenIdleFor) === undefined ? 'a sharing.whenIdleFor that is not a time like "10m"' : undefined;
}

const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, min: 60_000, h: 3_600_000, d: 86_400_000 };

function idleMs(time: string | number): number | undefined {
  if (typeof time === 'number') return time >= 0 ? time : undefined;
  const [, number, unit] = /^\s*(\d+)\s*(ms|s|m|min|h|d)\s*$/.exec(String(time)) ?? [];
  return unit === undefined ? undefined : Number(number) * UNITS[unit]!;
}

function wireSharing({ hours, onBattery, whenIdleFor }: Sharing): WireSharing {
  return {
    hours: (hours ?? []).map(text),
    ...(onBattery != null && { on_battery: onBattery }),
    ...(whenIdleFor != null && { when_idle_for_ms: uint32(idleMs(whenIdleFor)!) }),
  };
}

/** A field that is written like one of ours but for its capitals, such as "maxInflight", is none of the program's own. */
function misspelt(provider: Provider): string | undefined {
  for (const field in provider) {
    const meant = FIELDS.find((known) => known.toLowerCase() === field.toLowerCase());
    if (meant !== undefined && meant !== field) return `a field "${field}"; "${meant}" is meant`;
  }
  return undefined;
}

export function wireProvider(provider: Provider): WireProvider {
  const { maxInFlight, contextTokens, maxOutputTokens } = provider;
  return {
    name: text(provider.name),
    type: text(provider.type),
    model: text(provider.model),
    tier: text(provider.tier),
    description: text(provider.description),
    // Consent is the word true and nothing that is merely like it.
    publish: provider.publish === true,
    sharing: rulesOf(provider).map(wireSharing),
    ...(maxInFlight !== undefined && { max_in_flight: uint32(maxInFlight) }),
    state: `PROVIDER_STATE_${(provider.state ?? 'ready').toUpperCase()}`,
    state_detail: text(provider.stateDetail),
    features: (provider.features ?? []).map(text),
    ...(contextTokens !== undefined && { context_tokens: uint32(contextTokens) }),
    ...(maxOutputTokens !== undefined && { max_output_tokens: uint32(maxOutputTokens) }),
  };
}

function text(value: unknown): string {
  return wellFormed(String(value ?? ''));
}
