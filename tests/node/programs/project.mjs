// Empty projects, the packed packages, a registry that has them, and programs in projects.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const PACKAGES = process.env.MCPRELAY_PACKAGES;
if (!PACKAGES) throw new Error('MCPRELAY_PACKAGES is not set: start the tests with tests/node/programs.sh');
export const PLATFORM = `${process.platform}-${process.arch}`;
export const { version: VERSION } = JSON.parse(readFileSync(new URL('../../../clients/mcprelay/package.json', import.meta.url)));

/** The packed file of a package: `mcprelay`, or `mcprelay-linux-x64`. */
export const packed = (name) => join(PACKAGES, `mcpctl-${name}-${VERSION}.tgz`);

/** A folder that is gone at the end of the test. */
export function folder(t) {
  const made = mkdtempSync(join(tmpdir(), 'programs-'));
  t.after(() => rmSync(made, { recursive: true, force: true }));
  return made;
}

/** A project without dependencies. */
export function project(t) {
  const made = folder(t);
  writeFileSync(join(made, 'package.json'), JSON.stringify({ name: 'empty', private: true }));
  return made;
}

/** A program that does what `script` says, in a file named `name`. */
export function script(at, name, text) {
  const file = join(at, name);
  writeFileSync(file, `#!${process.execPath}\n${text}\n`);
  chmodSync(file, 0o755);
  return file;
}

/** Runs a command to its end: `{ code, signal, out }`, where `out` is all that it said. */
export function run(cwd, env, command, ...args) {
  return start(cwd, env, command, ...args).ended;
}

export function start(cwd, env, command, ...args) {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
  let out = '';
  const waiting = [];
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      out += data;
      for (const look of waiting) look();
    });
  }
  const said = (text) =>
    new Promise((resolve, reject) => {
      const look = () => out.includes(text) && resolve();
      waiting.push(look);
      look();
      child.once('close', () => reject(new Error(`it ended without saying ${text}: ${out}`)));
    });
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal, out }));
  return { child, said, all: () => out, ended };
}

/** Installs, and fails with what npm says. */
export async function npm(cwd, env, ...args) {
  const { code, out } = await run(cwd, env, 'npm', ...args);
  if (code !== 0) throw new Error(`npm ${args.join(' ')}: ${out}`);
}

/** A project with the package of this platform, from the packed files. */
export async function installed(t) {
  const made = project(t);
  await npm(made, {}, 'install', '--offline', packed('mcprelay'), packed(`mcprelay-${PLATFORM}`));
  return made;
}

/** A registry on loopback that has the packed packages and nothing else; gives npm's environment. */
export async function registry(t) {
  const found = new Map(readdirSync(PACKAGES).map((file) => entry(join(PACKAGES, file))));
  const server = createServer((request, response) => {
    const name = decodeURIComponent(request.url.slice(1));
    const tarball = [...found.values()].find(({ file }) => name === file);
    if (tarball) return response.end(tarball.bytes);
    const known = found.get(name);
    if (!known) return response.writeHead(404).end('{}');
    const dist = { tarball: `http://${request.headers.host}/${encodeURIComponent(known.file)}`, integrity: known.integrity };
    const versions = { [VERSION]: { ...known.manifest, dist } };
    return response.end(JSON.stringify({ name, 'dist-tags': { latest: VERSION }, versions }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => { server.closeAllConnections(); server.close(); });
  const cache = folder(t);
  return { npm_config_registry: `http://127.0.0.1:${server.address().port}/`, npm_config_cache: cache };
}

function entry(file) {
  const bytes = readFileSync(file);
  const manifest = JSON.parse(execFileSync('tar', ['-xzOf', file, 'package/package.json']));
  const integrity = `sha512-${createHash('sha512').update(bytes).digest('base64')}`;
  return [manifest.name, { file, bytes, manifest, integrity }];
}
