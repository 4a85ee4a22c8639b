'use strict';

const fs = require('node:fs');
const { pipeline } = require('node:stream/promises');
const { call, quick } = require('./native.cjs');
const { of, toLibrary, fromLibrary, how, argv } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');
const { socketOf, readStream, writeStream } = require('./streams.cjs');
const { Result, ExitError, Process, commandsOf, filesOf } = require('./programs.cjs');
const { FileInfo, Watch, entries, rangeOf, writingOf } = require('./files.cjs');

class Forward extends Handle {
  static kind = 'forward';

  constructor(made) {
    super(made.forward);
    this.address = made.address;
    this.port = made.port;
  }

  stats() {
    return fromLibrary(quick('forward_stats', this._handle));
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

  async spawn(args, options) {
    return fromLibrary(await call('vm_spawn', this._handle, { args: argv(args), ...toLibrary(options) }, how(options)));
  }

  async attach(id, options) {
    return new Process(await call('vm_attach', this._handle, { stdout: true, ...toLibrary({ id, ...options }) }, how(options)));
  }

  async programs(options) {
    const { programs, more } = fromLibrary(await call('vm_programs', this._handle, {}, how(options)));
    return Object.assign(programs, { more });
  }

  async chain(commands, { files, ...options } = {}) {
    const request = { commands: commandsOf(commands), files: filesOf(files), ...toLibrary(options) };
    const { outputs, failed, error } = await call('vm_chain', this._handle, request, how(options));
    return { outputs: outputs.map((o) => new Result(o)), failed: failed < 0 ? undefined : failed, error };
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

  followConsole(options) {
    return readStream(this, 'vm_follow_console', { ...options });
  }

  async connect(port, options) {
    return socketOf((await call('vm_connect', this._handle, { port }, how(options))).fd);
  }

  async forward(options) {
    return new Forward(await call('vm_forward', this._handle, toLibrary(options), how(options)));
  }

  async forwardToHost(address, options) {
    const made = await call('vm_forward_to_host', this._handle, { address, ...toLibrary(options) }, how(options));
    return new Forward({ ...made, address: `127.0.0.1:${made.port}` });
  }

  async socketPath(options) {
    return (await call('vm_socket_path', this._handle, {}, how(options))).path;
  }

  async readFile(path, { encoding, ...options } = {}) {
    const { data } = fromLibrary(await call('vm_read_file', this._handle, { path, ...rangeOf(options) }, how(options)));
    const buffer = data === null || options.length === 0 ? Buffer.alloc(0) : data;
    return encoding ? buffer.toString(encoding) : buffer;
  }

  async writeFile(path, data, options) {
    await call('vm_write_file', this._handle, { path, data, ...writingOf(options) }, how(options));
  }

  createReadStream(path, options) {
    return readStream(this, 'vm_open_file', { ...options, path }, rangeOf);
  }

  createWriteStream(path, options) {
    return writeStream(this, 'vm_create_file', { ...options, path }, writingOf);
  }

  pack(path, options) {
    return readStream(this, 'vm_pack', { ...options, path });
  }

  unpack(path, options) {
    return writeStream(this, 'vm_unpack', { ...options, path });
  }

  async copyIn(source, target, options) {
    await call('vm_copy_in', this._handle, { source, target, ...toLibrary(options) }, how(options));
  }

  async copyOut(source, target, options) {
    await call('vm_copy_out', this._handle, { source, target, ...toLibrary(options) }, how(options));
  }

  async stat(path, { follow = true, ...options } = {}) {
    return new FileInfo(await call('vm_stat', this._handle, { path, ...toLibrary({ noFollow: !follow, ...options }) }, how(options)));
  }

  list(path, options) {
    return entries(this, { path, ...toLibrary(options) }, options);
  }

  walk(path, options) {
    return entries(this, { path, depth: -1, ...toLibrary(options) }, options);
  }

  async watch(path, options) {
    return new Watch(await call('vm_watch', this._handle, { path, ...toLibrary(options) }, how(options)), options?.signal);
  }

  async mkdir(path, options) {
    await call('vm_mkdir', this._handle, { path, ...toLibrary(options) }, how(options));
  }

  async remove(path, options) {
    await call('vm_remove', this._handle, { path, ...toLibrary(options) }, how(options));
  }

  async rename(path, to, options) {
    await call('vm_rename', this._handle, { path, to, ...toLibrary(options) }, how(options));
  }

  async chmod(path, mode, options) {
    await call('vm_chmod', this._handle, { path, mode, ...toLibrary(options) }, how(options));
  }

  async chown(path, owner, { follow = true, ...options } = {}) {
    await call('vm_chown', this._handle, { path, owner, ...toLibrary({ noFollow: !follow, ...options }) }, how(options));
  }

  async symlink(target, path, options) {
    await call('vm_symlink', this._handle, { target, path, ...toLibrary(options) }, how(options));
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
    const { Image } = require('./image.cjs'); // which needs this file
    return new Image(await call('vm_snapshot', this._handle, toLibrary(options), how(options)));
  }

  async fork(options) {
    const r = await call('vm_fork', this._handle, toLibrary(options), how(options));
    return r.vms.map((vm, i) => new VM({ vm, id: r.ids[i], name: r.names[i], restore_id: r.restore_ids[i] }));
  }

  info() {
    return fromLibrary(quick('vm_info', this._handle));
  }

  async stats(options) {
    return fromLibrary(await call('vm_stats', this._handle, {}, how(options)));
  }

  setBalloon(bytes) {
    quick('vm_set_balloon', this._handle, toLibrary({ bytes }));
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

module.exports = { VM, Forward };
