// A program that this process started: its log, its end, and that it does not outlive this process.
'use strict';
const { spawn } = require('node:child_process');
const { createInterface } = require('node:readline');
const { binaryPath } = require('./binary.js');

/** Lines of the log that are kept for `log()` and for errors. */
const LOG_LINES = 200;

const running = new Set();
process.on('exit', () => running.forEach((program) => program.child.kill('SIGKILL')));

class Program {
  #lines = [];

  constructor(name, args, env) {
    this.name = name;
    this.child = spawn(binaryPath(name, env), args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(this);
    createInterface({ input: this.child.stderr }).on('line', (line) => {
      this.#lines = [...this.#lines.slice(1 - LOG_LINES), line];
    });
    this.output = createInterface({ input: this.child.stdout });
    this.exited = new Promise((resolve) => {
      this.child.once('error', (error) => {
        this.#lines.push(error.message);
        resolve({ code: null, signal: null });
      });
      // When all that it said has been read.
      this.child.once('close', (code, signal) => resolve({ code, signal }));
    }).finally(() => running.delete(this));
  }

  log() {
    return this.#lines.join('\n');
  }

  /** What `ready` comes to, unless the program ends before or it takes too long; then it is ended. */
  async until(ready, timeoutMs) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(this.#failure(`is not ready after ${timeoutMs} ms`)), timeoutMs);
    });
    const ended = this.exited.then(({ code, signal }) => {
      throw this.#failure(`ended at its start with ${signal ?? `exit code ${code}`}`);
    });
    try {
      return await Promise.race([ready, ended, late]);
    } catch (error) {
      await this.stop('SIGKILL', 0);
      throw error;
    } finally {
      clearTimeout(timer);
      ended.catch(() => {});
    }
  }

  #failure(what) {
    return new Error(`${this.name} ${what}:\n${this.log()}`);
  }

  /** Asks it to end, and insists after `graceMs`. */
  async stop(signal, graceMs) {
    if (running.has(this)) this.child.kill(signal);
    const late = setTimeout(() => this.child.kill('SIGKILL'), graceMs);
    const ended = await this.exited;
    clearTimeout(late);
    return ended;
  }
}

/** The name of the method that `await using` calls, which Node has since 20.5. */
const asyncDispose = Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose');

/** A typing error in an option would otherwise be one that is not noticed. */
function checkOptions(what, options, known) {
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown) throw new TypeError(`${what} knows no option ${unknown}; it takes ${known.join(', ')}`);
}

module.exports = { Program, asyncDispose, checkOptions };
