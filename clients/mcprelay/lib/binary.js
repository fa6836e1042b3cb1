// Where the programs are: named by the environment, in this platform's package, or on the PATH.
'use strict';
const fs = require('node:fs');
const { delimiter, dirname, join } = require('node:path');
const { name: OWN_NAME, version, optionalDependencies } = require('../package.json');

/** The programs, and the variable that may name each one's file. */
const PROGRAMS = { mcprelay: 'MCPRELAY_BINARY', 'fake-mcpd': 'FAKE_MCPD_BINARY' };

/** What this machine is called in the names of packages, as in `linux-x64`. */
const PLATFORM = `${process.platform}-${process.arch}`;
const PACKAGE = `${OWN_NAME}-${PLATFORM}`;

/** No program was found; the message says what was looked for, what is there, and what to do. */
class ProgramNotFoundError extends Error {
  name = 'ProgramNotFoundError';
  code = 'MCPRELAY_PROGRAM_NOT_FOUND';
}

function binaryPath(name, env = process.env) {
  const variable = Object.hasOwn(PROGRAMS, name) ? PROGRAMS[name] : undefined;
  if (!variable) throw new TypeError(`there is no program ${name}: it is one of ${Object.keys(PROGRAMS).join(', ')}`);
  if (env[variable]) return named(variable, env[variable]);
  const program = installed(name) ?? onPath(name, env.PATH);
  if (program) return program;
  throw new ProgramNotFoundError(explain(name, variable));
}

function named(variable, file) {
  if (isExecutable(file)) return file;
  throw new ProgramNotFoundError(`${variable} names ${file}, which is no executable file: correct or unset it`);
}

/** The folder of a package that is installed beside this one. */
function folderOf(name) {
  try {
    return dirname(require.resolve(`${name}/package.json`));
  } catch {
    return undefined;
  }
}

function installed(name) {
  const folder = folderOf(PACKAGE);
  const program = folder && join(folder, 'bin', name);
  return program && isExecutable(program) ? program : undefined;
}

/** The first on the PATH that is no script: `npx` puts this package's own launchers there. */
function onPath(name, path = '') {
  const folders = path.split(delimiter).filter((folder) => folder);
  return folders.map((folder) => join(folder, name)).find((file) => isExecutable(file) && !isScript(file));
}

function isExecutable(file) {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

function isScript(file) {
  const begin = Buffer.alloc(2);
  try {
    const open = fs.openSync(file, 'r');
    fs.readSync(open, begin);
    fs.closeSync(open);
  } catch {
    return false;
  }
  return begin.toString() === '#!';
}

/** Whether this is a Linux with another C library than the one the programs are built for, as Alpine is. */
function withoutGlibc() {
  return process.platform === 'linux' && !process.report.getReport().header.glibcVersionRuntime;
}

function explain(name, variable) {
  const elsewhere = `install ${name} yourself, and put it on the PATH or name it with ${variable}`;
  const lines = [`no ${name} for ${PLATFORM} was found`];
  if (!(PACKAGE in optionalDependencies)) {
    const platforms = Object.keys(optionalDependencies).map((other) => other.slice(OWN_NAME.length + 1));
    lines.push(`- it is built for ${platforms.join(', ')}`);
    lines.push(process.platform === 'win32' ? '- run it in WSL 2' : `- ${elsewhere}`);
  } else if (withoutGlibc()) {
    lines.push('- it needs glibc 2.17, and this Linux has another C library', `- ${elsewhere}`);
  } else {
    lines.push(`- ${found()}`, `- ${remedy()}`, `- or ${elsewhere}`);
  }
  return lines.join('\n  ');
}

function found() {
  const folder = folderOf(PACKAGE);
  if (folder) return `${folder} has no such program that can be executed`;
  const others = Object.keys(optionalDependencies).filter((other) => folderOf(other));
  const instead = others.length ? `; ${others.join(' and ')} is, so node_modules comes from another machine` : '';
  return `its package ${PACKAGE}@${version} is not installed${instead}`;
}

function remedy() {
  return (
    'if dependencies were installed with --omit=optional, install without it; otherwise the lock file was made ' +
    `elsewhere: remove it and node_modules and install again, or run npm install --no-save ${PACKAGE}@${version}`
  );
}

module.exports = { PROGRAMS, ProgramNotFoundError, binaryPath, withoutGlibc };
