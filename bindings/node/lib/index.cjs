'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const { pipeline } = require('node:stream/promises');
const { call, quick } = require('./native.cjs');
const { SupermachineError, errors } = require('./errors.cjs');
const { toLibrary, fromLibrary, how, argv } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');
const { socketOf, readFileStream, writeFileStream } = require('./streams.cjs');

const of = (store) => store?._handle ?? 0n;

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

  async close() {
    for (const stream of [this.stdin, this.stdout, this.stderr]) stream?.destroy();
    await super.close();
  }

  [Symbol.asyncIterator]() {
    if (this.stdout === undefined) throw new TypeError('stdout was not asked for');
    return readline.createInterface({ input: this.stdout, crlfDelay: Infinity })[Symbol.asyncIterator]();
  }
}

class Forward extends Handle {
  static kind = 'forward';

  constructor(made) {
    super(made.forward);
    this.address = made.address;
  }
}

class VM extends Handle {
  static kind = 'vm';

  constructor(started) {
    super(started.vm);
    this.id = started.id;
    this.name = started.name;
    this.restoreId = started.restore_id;
  }

  static async boot(ref, { store, ...options } = {}) {
    return new VM(await call('vm_boot', of(store), { ref, ...toLibrary(options) }, how(options)));
  }

  async run(args, { check = false, ...options } = {}) {
    const result = new Result(await call('vm_run', this._handle, { args: argv(args), ...toLibrary(options) }, how(options)));
    if (check && result.code !== 0) throw new ExitError(args, result);
    return result;
  }

  async exec(args, options) {
    return new Process(await call('vm_exec', this._handle, { args: argv(args), stdout: true, ...toLibrary(options) }, how(options)));
  }

  async startWorkload(args, options) {
    await call('vm_start_workload', this._handle, { args: argv(args), ...toLibrary(options) }, how(options));
  }

  async logs(options) {
    return new Process(await call('vm_follow', this._handle, {}, how(options)));
  }

  console(options) {
    return quick('vm_console', this._handle, toLibrary(options)).text;
  }

  async connect(port, options) {
    return socketOf((await call('vm_connect', this._handle, { port }, how(options))).fd);
  }

  async forward(options) {
    return new Forward(await call('vm_forward', this._handle, toLibrary(options), how(options)));
  }

  async readFile(path, options) {
    const data = fromLibrary((await call('vm_read_file', this._handle, { path, ...toLibrary({ ...options, encoding: undefined }) }, how(options))).data);
    const buffer = data ?? Buffer.alloc(0);
    return options?.encoding ? buffer.toString(options.encoding) : buffer;
  }

  async writeFile(path, data, options) {
    await call('vm_write_file', this._handle, { path, data, ...toLibrary(options) }, how(options));
  }

  createReadStream(path, options) {
    return readFileStream(this, path, options);
  }

  createWriteStream(path, options) {
    return writeFileStream(this, path, options);
  }

  async upload(source, path, options) {
    const { mode } = await fs.promises.stat(source);
    await pipeline(fs.createReadStream(source), this.createWriteStream(path, { mode: mode & 0o777, ...options }), { signal: options?.signal });
  }

  async download(path, target, options) {
    await pipeline(this.createReadStream(path), fs.createWriteStream(target), { signal: options?.signal });
  }

  async pause(options) {
    await call('vm_pause', this._handle, {}, how(options));
  }

  async resume(options) {
    await call('vm_resume', this._handle, {}, how(options));
  }

  async snapshot(options) {
    return new Image(await call('vm_snapshot', this._handle, toLibrary(options), how(options)));
  }

  async fork(options) {
    const r = await call('vm_fork', this._handle, toLibrary(options), how(options));
    return r.vms.map((vm, i) => new VM({ vm, id: r.ids[i], name: r.names[i], restore_id: r.restore_ids[i] }));
  }

  info() {
    return fromLibrary(quick('vm_info', this._handle));
  }

  async memory(options) {
    return fromLibrary(await call('vm_memory', this._handle, {}, how(options)));
  }

  setBalloon(bytes) {
    quick('vm_set_balloon', this._handle, { bytes });
  }

  async wait(options) {
    return fromLibrary(await call('vm_wait', this._handle, {}, how(options)));
  }

  async stop(options) {
    return fromLibrary(await call('vm_stop', this._handle, toLibrary(options), how(options)));
  }

  kill() {
    quick('vm_kill', this._handle);
  }

  async discard() {
    if (this._take()) await call('vm_discard', this._handle);
  }
}

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

async function run(ref, args, { onProgress, ...options } = {}) {
  argv(args); // nothing is pulled for arguments that are wrong
  const { signal } = options;
  const baked = { bootOnly: true, signal, onProgress };
  for (const key of ofImage) {
    baked[key] = options[key];
    delete options[key];
  }
  const image = await Image.fromOCI(ref, baked);
  try {
    const vm = await image.start({ signal });
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

async function trace(onEvent, { signal } = {}) {
  await call('trace', 0n, {}, { signal, onEvent: (e) => onEvent(fromLibrary(e)) });
}

module.exports = { Image, VM, Process, Forward, Pool, Store, Result, ExitError, SupermachineError, errors, run, doctor, version, setAdmission, trace };
