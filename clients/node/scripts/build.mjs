// Builds dist/: the agent's proto, the CommonJS and the ESM form; and fetches the licences.
//
// The proto is embedded as a module, not read from a file at run time: __dirname exists only in CommonJS, import.meta
// only in ESM, and a bundler would leave the file behind.
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const here = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const PROTO = here('../../proto/mcprelay/bridge/v1/bridge.proto');

const require = createRequire(import.meta.url);
const protobuf = require('protobufjs');

function embedProto() {
  const { root } = protobuf.parse(readFileSync(PROTO, 'utf8'), { keepCase: true });
  mkdirSync(here('src/generated'), { recursive: true });
  const json = JSON.stringify(root.toJSON(), null, 1);
  writeFileSync(here('src/generated/bridge.ts'), `// Made from bridge.proto by scripts/build.mjs.\nexport const bridge: object = ${json};\n`);
}

function embedVersion() {
  const { version } = JSON.parse(readFileSync(here('package.json'), 'utf8'));
  writeFileSync(here('src/generated/version.ts'), `// Made from package.json by scripts/build.mjs.\nexport const version = '${version}';\n`);
}

function compile(project) {
  execFileSync(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', here(project)], { stdio: 'inherit' });
}

rmSync(here('dist'), { recursive: true, force: true });
embedProto();
embedVersion();
compile('tsconfig.json');
compile('tsconfig.esm.json');
writeFileSync(here('dist/esm/package.json'), '{ "type": "module" }\n');
copyFileSync(PROTO, here('dist/bridge.proto'));
// Every package carries its licences; npm packs nothing from outside of its folder.
for (const file of ['LICENSE', 'LICENSE-APACHE', 'LICENSE-MIT']) copyFileSync(here(`../../${file}`), here(file));
