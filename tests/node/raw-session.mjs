// A client of the bridge with nothing but @grpc/grpc-js and @grpc/proto-loader, as another program would write it.
import { join } from 'node:path';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { REPO, until } from './parts.mjs';

const { BridgeService } = grpc.loadPackageDefinition(
  loadSync(join(REPO, 'proto/mcprelay/bridge/v1/bridge.proto'), {
    keepCase: true,
    longs: String,
    enums: String,
    oneofs: true,
    defaults: true,
  }),
).mcprelay.bridge.v1;

const MAX_MESSAGE_BYTES = 33 * 1024 * 1024;

/** A channel to the agent's socket. */
export function connect(socket) {
  return new BridgeService(`unix://${socket}`, grpc.credentials.createInsecure(), {
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_send_message_length': -1,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1_000,
  });
}

export const provider = (name, fields = {}) => ({ name, type: 'test', model: 'test-model', publish: true, ...fields });

/** One Session stream that keeps what it hears. */
export class RawSession {
  heard = [];
  generation = 0;

  constructor(socket) {
    this.client = connect(socket);
    this.call = this.client.Session();
    this.call.on('data', (message) => this.heard.push(message));
    this.call.on('error', () => {}); // The status says the same.
    this.ended = new Promise((resolve) => this.call.on('status', (status) => resolve(status)));
    this.ended.finally(() => this.client.close());
  }

  /** Introduces itself, pushes providers and has the agent's verdicts. */
  static async open(socket, providers, hello = {}) {
    const session = new RawSession(socket);
    session.say({ hello: { client_id: `raw-${providers[0]?.name}`, max_message_bytes: MAX_MESSAGE_BYTES, ...hello } });
    session.welcome = await session.hears('welcome');
    session.verdicts = await session.push(providers);
    return session;
  }

  say(message) {
    return this.call.write(message);
  }

  /** The first message of a kind that fits, had already or to come. */
  hears(kind, fits = () => true) {
    const found = () => this.heard.find((message) => message.payload === kind && fits(message[kind]));
    return until(`the session hears ${kind}`, found).then((message) => message[kind]);
  }

  async push(providers) {
    const generation = ++this.generation;
    this.say({ provider_snapshot: { generation, providers } });
    const result = await this.hears('provider_snapshot_result', (answer) => answer.generation === generation);
    return result.verdicts;
  }

  /** Listed is not yet served: the agent registers first and opens its channel then. */
  online() {
    const states = () => this.heard.map((message) => message.agent_status ?? message.welcome?.agent_status);
    return until('the agent is online', () => states().filter(Boolean).at(-1)?.state === 'AGENT_STATE_ONLINE');
  }

  offers() {
    return this.heard.filter((message) => message.payload === 'task_offer').map((message) => message.task_offer);
  }

  /** The n-th offer from 0. */
  offer(n = 0) {
    return until(`offer ${n} arrives`, () => this.offers()[n]);
  }

  chunk({ task_id }, output) {
    this.say({ task_chunk: { task_id, ...output } });
  }

  finish({ task_id }, outcome = {}) {
    this.say({ task_finished: { task_id, ...outcome } });
  }

  /** Goes in the orderly way, and gives the stream's status. */
  async leave() {
    this.say({ drain: { reason: 'the test is over' } });
    this.call.end();
    return this.ended;
  }
}
