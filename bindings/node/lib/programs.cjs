'use strict';
// Programs of a VM: how they are asked for, what they write, and how they end.

const readline = require('node:readline');
const { call, quick } = require('./native.cjs');
const { toLibrary, fromLibrary, how, argv } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');
const { socketOf } = require('./streams.cjs');

class Result {
  constructor(fields) {
    Object.assign(this, fromLibrary(fields));
    this.stdout ??= Buffer.alloc(0);
    this.stderr ??= Buffer.alloc(0);
  }

  get text() {
    return this.stdout.toString();
  }
}

class ExitError extends Error {
  constructor(args, result) {
    const how = result.signal ? `was ended by signal ${result.signal}` : `exited with ${result.code}`;
    const last = result.stderr.toString().trim().split('\n').pop();
    super(`${args[0]} ${how}${last ? `: ${last}` : ''}`);
    this.name = 'ExitError';
    this.result = result;
  }
}

class Process extends Handle {
  static kind = 'exec';

  constructor(started) {
    super(started.exec);
    this.id = fromLibrary(started.id);
    this.pid = started.pid;
    this.stdin = socketOf(started.stdin, { readable: false });
    this.stdout = socketOf(started.stdout, { writable: false });
    this.stderr = socketOf(started.stderr, { writable: false });
  }

  async wait(options) {
    return fromLibrary(await call('exec_wait', this._handle, {}, how(options)));
  }

  kill(signal = 'KILL') {
    quick('exec_signal', this._handle, { signal });
  }

  resize(rows, cols) {
    quick('exec_resize', this._handle, { rows, cols });
  }

  async detach(options) {
    await call('exec_detach', this._handle, {}, how(options));
  }

  async close() {
    for (const stream of [this.stdin, this.stdout, this.stderr]) stream?.destroy();
    await super.close();
  }

  [Symbol.asyncIterator]() {
    if (this.stdout === undefined) throw new TypeError('stdout was not asked for');
    return readline.createInterface({ input: this.stdout, crlfDelay: Infinity })[Symbol.asyncIterator]();
  }
}

/** The programs of a chain: each is an array of a program and its arguments, or an object with args. */
function commandsOf(commands) {
  if (!Array.isArray(commands)) throw new TypeError('commands is an array, of a program and its arguments each');
  return commands.map((c) => {
    if (c === null || typeof c !== 'object') {
      throw new TypeError("a command is an array of a program and its arguments, or an object with args; for a shell command use ['sh', '-c', command]");
    }
    return Array.isArray(c) ? { args: argv(c) } : { ...toLibrary(c), args: argv(c.args) };
  });
}

/** The files of a chain: an object of what shall be in each, or an array of objects with path and data. */
function filesOf(files = {}) {
  return Array.isArray(files) ? files.map(toLibrary) : Object.entries(files).map(([path, data]) => ({ path, data }));
}

module.exports = { Result, ExitError, Process, commandsOf, filesOf };
