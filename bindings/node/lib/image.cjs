'use strict';

const { call, quick } = require('./native.cjs');
const { of, toLibrary, fromLibrary, how } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');
const { VM } = require('./vm.cjs');

class Image extends Handle {
  static kind = 'image';

  constructor(made) {
    super(made.image);
    this.id = made.id;
  }

  static async fromOCI(ref, { store, ready, ...options } = {}) {
    const readiness = Array.isArray(ready) ? { ready_command: ready } : { ready };
    return new Image(await call('image_from_oci', of(store), { ref, ...readiness, ...toLibrary(options) }, how(options)));
  }

  static async fromSnapshot(name, { store, ...options } = {}) {
    return new Image(await call('image_from_snapshot', of(store), { name, ...toLibrary(options) }, how(options)));
  }

  async start(options) {
    return new VM(await call('vm_start', this._handle, toLibrary(options), how(options)));
  }

  async acquire(options) {
    return new VM(await call('image_acquire', this._handle, {}, how(options)));
  }

  poolStats() {
    return fromLibrary(quick('image_pool_stats', this._handle));
  }

  info() {
    return fromLibrary(quick('image_info', this._handle));
  }

  pool(options) {
    return new Pool(quick('pool_new', this._handle, toLibrary(options)));
  }
}

class Pool extends Handle {
  static kind = 'pool';

  constructor(made) {
    super(made.pool);
  }

  async acquire(options) {
    return new VM(await call('pool_acquire', this._handle, {}, how(options)));
  }

  stats() {
    return fromLibrary(quick('pool_stats', this._handle));
  }
}

module.exports = { Image, Pool };
