// From packed files to a finished demo, and every way in which the program can be missing.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { PLATFORM, VERSION, folder, installed, npm, packed, project, registry, run, script } from './project.mjs';

const OTHER = process.platform === 'linux' ? 'darwin-arm64' : 'linux-arm64';
/** The launcher in a project. */
const MCPRELAY = 'node_modules/.bin/mcprelay';
const [OTHER_OS, OTHER_CPU] = OTHER.split('-');
const carriers = (made) => readdirSync(join(made, 'node_modules/@mcpctl')).sort();

test('an empty project has a finished demo, without network', async (t) => {
  const made = project(t);
  const began = performance.now();
  await npm(made, {}, 'install', '--offline', packed('mcprelay'), packed(`mcprelay-${PLATFORM}`));
  const between = performance.now();
  const demo = await run(made, {}, 'npx', '--offline', 'mcprelay', 'demo');
  const [install, all] = [between - began, performance.now() - began].map((ms) => (ms / 1000).toFixed(1));
  assert.equal(demo.code, 0, demo.out);
  assert.match(demo.out, /You said: Say hello[^]*Done in/);
  t.diagnostic(`npm install ${install} s, to the end of npx mcprelay demo ${all} s`);
});

test('a registry gives the package of this platform, and a lock that holds for all', async (t) => {
  const env = await registry(t);
  const made = project(t);
  await npm(made, env, 'install', '@mcpctl/mcprelay');
  assert.deepEqual(carriers(made), ['mcprelay', `mcprelay-${PLATFORM}`]);
  const version = await run(made, env, MCPRELAY, '--version');
  assert.equal(version.out.trim(), `mcprelay ${VERSION}`);
  const { packages } = JSON.parse(readFileSync(join(made, 'package-lock.json')));
  assert.ok(packages[`node_modules/@mcpctl/mcprelay-${OTHER}`].optional);
});

test('a lock made on another platform is good here', async (t) => {
  const env = await registry(t);
  const made = project(t);
  await npm(made, env, 'install', '@mcpctl/mcprelay', `--os=${OTHER_OS}`, `--cpu=${OTHER_CPU}`);
  assert.deepEqual(carriers(made), ['mcprelay', `mcprelay-${OTHER}`]);
  await npm(made, env, 'ci');
  assert.deepEqual(carriers(made), ['mcprelay', `mcprelay-${PLATFORM}`]);
});

test("another machine's node_modules is named as such", async (t) => {
  const env = await registry(t);
  const made = project(t);
  await npm(made, env, 'install', '@mcpctl/mcprelay', `--os=${OTHER_OS}`, `--cpu=${OTHER_CPU}`);
  const { code, out } = await run(made, env, MCPRELAY, 'demo');
  assert.equal(code, 127, out);
  assert.ok(out.includes(`@mcpctl/mcprelay-${PLATFORM}@${VERSION} is not installed`), out);
  assert.ok(out.includes(`@mcpctl/mcprelay-${OTHER} is, so node_modules comes from another machine`), out);
});

test('a lock that lacks this platform is refused by npm ci, and mended by npm install', async (t) => {
  const env = await registry(t);
  const made = project(t);
  await npm(made, env, 'install', '@mcpctl/mcprelay');
  const file = join(made, 'package-lock.json');
  const lock = JSON.parse(readFileSync(file));
  delete lock.packages[`node_modules/@mcpctl/mcprelay-${PLATFORM}`];
  writeFileSync(file, JSON.stringify(lock));
  rmSync(join(made, 'node_modules'), { recursive: true });
  const { code, out } = await run(made, env, 'npm', 'ci');
  assert.equal(code, 1);
  assert.match(out, new RegExp(`Missing: @mcpctl/mcprelay-${PLATFORM}@${VERSION} from lock file`));
  await npm(made, env, 'install');
  assert.deepEqual(carriers(made), ['mcprelay', `mcprelay-${PLATFORM}`]);
});

test('without optional packages the launcher says what is missing and what to do', async (t) => {
  const made = project(t);
  await npm(made, {}, 'install', '--offline', '--omit=optional', packed('mcprelay'));
  for (const program of ['mcprelay', 'fake-mcpd']) {
    const { code, out } = await run(made, {}, `node_modules/.bin/${program}`, '--version');
    assert.equal(code, 127, out);
    assert.match(out, new RegExp(`${program}: no ${program} for ${PLATFORM} was found`));
    assert.match(out, /not installed\n.*--omit=optional[^]*npm install --no-save/);
  }
});

test('a program on the PATH serves where no package does, and a script of that name does not', async (t) => {
  const made = project(t);
  await npm(made, {}, 'install', '--offline', '--omit=optional', packed('mcprelay'));
  const [scripts, programs] = [folder(t), join(await installed(t), `node_modules/@mcpctl/mcprelay-${PLATFORM}/bin`)];
  script(scripts, 'mcprelay', 'console.log("a script")');
  const PATH = `${scripts}:${programs}:${process.env.PATH}`;
  const { out } = await run(made, { PATH }, 'npx', '--offline', 'mcprelay', '--version');
  assert.equal(out.trim(), `mcprelay ${VERSION}`);
});

test('$MCPRELAY_BINARY comes first, and an empty promise of it is an error', async (t) => {
  const made = await installed(t);
  const MCPRELAY_BINARY = script(made, 'own', 'console.log("own", process.argv.slice(2)); process.exit(5)');
  const own = await run(made, { MCPRELAY_BINARY }, MCPRELAY, 'a', 'b c');
  assert.deepEqual([own.code, own.out.trim()], [5, "own [ 'a', 'b c' ]"]);
  const none = await run(made, { MCPRELAY_BINARY: '/nonexistent' }, MCPRELAY, 'demo');
  assert.equal(none.code, 127);
  assert.match(none.out, /MCPRELAY_BINARY names \/nonexistent, which is no executable file/);
});

test('a program that this machine cannot execute is said to be one', async (t) => {
  const made = await installed(t);
  const MCPRELAY_BINARY = script(made, 'odd', '');
  writeFileSync(MCPRELAY_BINARY, '#!/nonexistent/interpreter\n');
  const { code, out } = await run(made, { MCPRELAY_BINARY }, MCPRELAY, 'demo');
  assert.equal(code, 126, out);
  assert.match(out, /odd cannot be started/);
});
