/** The agent's socket. */
import { homedir } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';

/** The longest path that a socket can have, in bytes, without the zero at its end. */
const LONGEST_PATH_BYTES = process.platform === 'linux' ? 107 : 103;

export function defaultSocketPath(): string {
  return join(homedir(), '.mcpctl', 'mcprelay.sock');
}

/**
 * The absolute path that `path`, which may be written as `unix:///path`, names.
 *
 * @throws TypeError where no socket can ever be there.
 */
export function checkedSocketPath(path: unknown): string {
  if (typeof path !== 'string' || path === '') throw new TypeError('socketPath is not the path of a socket');
  const plain = path.replace(/^unix:(\/\/(?=\/))?/, '');
  if (!isAbsolute(plain)) throw new TypeError(`socketPath "${path}" is not an absolute path`);
  const bytes = Buffer.byteLength(plain);
  if (bytes <= LONGEST_PATH_BYTES) return resolve(plain);
  throw new TypeError(`socketPath has ${bytes} bytes; a socket's path has ${LONGEST_PATH_BYTES} at most: "${plain}"`);
}

/** grpc-js's name for a socket. It understands unix:///absolute only; the first part of unix://relative gets lost. */
export function targetOf(socketPath: string): string {
  return `unix://${socketPath}`;
}

/** Why a call to the agent ended, in one sentence for people. */
export function whyEnded(details: string, target: string): string {
  const socket = target.slice('unix://'.length);
  if (/ENOENT|ECONNREFUSED/.test(details)) return `No agent at ${socket} yet: "mcprelay run" starts one.`;
  if (/EACCES/.test(details)) return `No permission to open ${socket}: the agent must run as the same user.`;
  return details || 'The agent closed the session.';
}
