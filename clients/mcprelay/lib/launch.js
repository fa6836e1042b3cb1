// What `mcprelay` and `fake-mcpd` in node_modules/.bin do: they become the program, as far as Node can.
'use strict';
const { spawn } = require('node:child_process');
const { constants } = require('node:os');
const { binaryPath, withoutGlibc } = require('./binary.js');

const FORWARDED = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'];
/** A terminal sends these to the program itself as well, for which a second one means "at once". */
const FROM_TERMINAL = new Set(['SIGINT', 'SIGHUP', 'SIGQUIT']);
/** A shell's exit codes for what it cannot find, cannot execute, and saw end by a signal. */
const NOT_FOUND = 127;
const NOT_EXECUTABLE = 126;
const BY_SIGNAL = 128;

function launch(name) {
  let program;
  try {
    program = binaryPath(name);
  } catch (error) {
    console.error(`${name}: ${error.message}`);
    process.exitCode = NOT_FOUND;
    return;
  }
  const child = spawn(program, process.argv.slice(2), { stdio: 'inherit' });
  const atTerminal = [process.stdin, process.stdout, process.stderr].some((stream) => stream.isTTY);
  for (const signal of FORWARDED) {
    process.on(signal, () => {
      if (!(atTerminal && FROM_TERMINAL.has(signal))) child.kill(signal);
    });
  }
  child.on('error', (error) => {
    const why = withoutGlibc() ? 'it needs glibc 2.17, and this Linux has another C library' : error.message;
    console.error(`${name}: ${program} cannot be started: ${why}`);
    process.exitCode = NOT_EXECUTABLE;
  });
  child.on('exit', (code, signal) => {
    process.exitCode = code ?? BY_SIGNAL + constants.signals[signal];
    if (!signal) return;
    // Whoever started this sees the end that the program had.
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

module.exports = { launch };
