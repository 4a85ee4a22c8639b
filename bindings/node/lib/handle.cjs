'use strict';

const { call, hold, drop } = require('./native.cjs');

const forgotten = new FinalizationRegistry(({ kind, handle, held, name }) => {
  process.emitWarning(`a ${name} of supermachine-core was garbage-collected without having been closed`, 'ResourceWarning');
  drop(held);
  call(kind + '_close', handle).catch(() => {});
});

/** An object of the library's. It is closed once: by close, the end of an `await using` block, the end of its thread, or as a last resort the garbage collector. */
class Handle {
  #handle; // kept when it is closed: the library then says so, where 0 would stand for the user's own store
  #held;
  #closed = false;

  constructor(handle) {
    const { kind, name } = this.constructor;
    this.#handle = BigInt(handle);
    this.#held = hold(kind + '_close', this.#handle);
    forgotten.register(this, { kind, handle: this.#handle, held: this.#held, name }, this);
  }

  get _handle() {
    return this.#handle;
  }

  get closed() {
    return this.#closed;
  }

  /** Whoever gets true closes the object. */
  _take() {
    if (this.#closed) return false;
    this.#closed = true;
    drop(this.#held);
    forgotten.unregister(this);
    return true;
  }

  async close() {
    if (this._take()) await call(this.constructor.kind + '_close', this.#handle);
  }
}

// Node has the symbol from 18.18 on; before that, compilers of `await using` look for this one.
Handle.prototype[Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')] = function () {
  return this.close();
};

module.exports = { Handle };
