'use strict';
// Files of the guest: what is told about them, and what options say of parts of them.

const { call } = require('./native.cjs');
const { toLibrary, fromLibrary } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');

class FileInfo {
  constructor(fields) {
    Object.assign(this, fromLibrary(fields));
  }

  get mtime() {
    return new Date(this.mtimeMs);
  }

  isFile() {
    return this.type === 'file';
  }

  isDirectory() {
    return this.type === 'directory';
  }

  isSymbolicLink() {
    return this.type === 'symlink';
  }
}

class Entries extends Handle {
  static kind = 'entries';
}

/** What is in a directory. The list is opened by the first use, and closed at the end, by break and by an error. */
async function* entries(vm, options, { signal } = {}) {
  const list = new Entries((await call('vm_list', vm._handle, options, { signal })).entries);
  try {
    for (;;) {
      const { entries: batch } = await call('entries_next', list._handle, {}, { signal });
      if (batch.length === 0) return;
      for (const fields of batch) yield new FileInfo(fields);
    }
  } finally {
    await list.close();
  }
}

class Watch extends Handle {
  static kind = 'watch';
  #signal;
  #events = []; // that the library has given and nobody has taken

  constructor(made, signal) {
    super(made.watch);
    this.#signal = signal;
  }

  async #next() {
    const open = !this.closed;
    try {
      return fromLibrary((await call('watch_next', this._handle, {}, { signal: this.#signal })).events);
    } catch (e) {
      if (open && this.closed) return []; // meanwhile
      if (this.#signal?.aborted) await this.close();
      throw e;
    }
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      if (this.#events.length === 0) this.#events = await this.#next();
      if (this.#events.length === 0) return;
      yield this.#events.shift();
    }
  }
}

/** Options of reading. For the library no length is the whole file: who wants nothing gets a byte too much. */
function rangeOf(options) {
  return toLibrary(options?.length === 0 ? { ...options, length: 1 } : options);
}

/** Options of writing. An offset means to write over what is there. */
function writingOf(options) {
  if (options?.offset === undefined) return toLibrary(options);
  if (options.append) throw new TypeError('append and offset exclude each other');
  return toLibrary({ ...options, inPlace: true });
}

module.exports = { FileInfo, Watch, entries, rangeOf, writingOf };
