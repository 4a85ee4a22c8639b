'use strict';

const { call, quick } = require('./native.cjs');
const { SupermachineError, errors } = require('./errors.cjs');
const { toLibrary, fromLibrary, how, argv } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');
const { Result, ExitError, Process } = require('./programs.cjs');
const { FileInfo, Watch } = require('./files.cjs');
const { VM, Forward } = require('./vm.cjs');
const { Image, Pool } = require('./image.cjs');

class Store extends Handle {
  static kind = 'store';

  constructor(options) {
    super(quick('store_open', 0n, toLibrary(options)).store);
  }

  async pull(ref, options) {
    return fromLibrary(await call('store_pull', this._handle, { ref, ...toLibrary(options) }, how(options)));
  }

  async images() {
    return fromLibrary((await call('store_images', this._handle)).images) ?? [];
  }

  async removeImage(ref) {
    await call('store_remove_image', this._handle, { ref });
  }

  async snapshots() {
    return fromLibrary((await call('store_snapshots', this._handle)).snapshots) ?? [];
  }

  async inspect(name) {
    return fromLibrary(await call('store_inspect', this._handle, { name }));
  }

  async remove(name) {
    await call('store_remove', this._handle, { name });
  }

  async prune(options) {
    return fromLibrary((await call('store_prune', this._handle, toLibrary(options), how(options))).snapshots) ?? [];
  }

  async flatten(name, options) {
    return (await call('store_flatten', this._handle, { name }, how(options))).id;
  }
}

/** The options of run that say what it runs in. */
const ofImage = ['store', 'memoryMib', 'vcpus', 'scratchMib', 'pull', 'platform', 'insecure'];

/** And those that say what it has of the host and the world. */
const ofStart = ['volumes', 'mounts', 'network', 'egress', 'egressDefault'];

/** Takes options out. */
function take(options, keys) {
  const taken = {};
  for (const key of keys) {
    taken[key] = options[key];
    delete options[key];
  }
  return taken;
}

async function run(ref, args, { onProgress, ...options } = {}) {
  argv(args); // nothing is pulled for arguments that are wrong
  const { signal } = options;
  const given = take(options, ofStart);
  const image = await Image.fromOCI(ref, { bootOnly: true, signal, onProgress, ...take(options, ofImage) });
  try {
    const vm = await image.start({ signal, ...given });
    try {
      return await vm.run(args, options);
    } finally {
      await vm.close();
    }
  } finally {
    await image.close();
  }
}

async function doctor() {
  return fromLibrary(await call('doctor'));
}

function version() {
  return fromLibrary(quick('version'));
}

function setAdmission(options) {
  quick('set_admission', 0n, toLibrary(options));
}

function metrics() {
  return quick('metrics').text;
}

async function trace(onEvent, { signal, ...options } = {}) {
  await call('trace', 0n, toLibrary(options), { signal, onEvent: (e) => onEvent(fromLibrary(e)) });
}

module.exports = {
  Image, VM, Process, Forward, Watch, Pool, Store, Result, FileInfo, ExitError, SupermachineError, errors,
  run, doctor, version, setAdmission, metrics, trace,
};
