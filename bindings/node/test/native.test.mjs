// What needs no guest: loading, options, errors, handles, signals, threads.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import * as supermachine from 'supermachine-core';

const { errors, Image, Store, SupermachineError, VM } = supermachine;
const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.join(here, '../../..');
const temporary = () => fs.mkdtempSync(path.join(os.tmpdir(), 'supermachine-node-'));

/** Runs a script in a process of its own. */
function node(script, env = {}, ...flags) {
  return spawnSync(process.execPath, [...flags, '--input-type=module', '-e', script], {
    cwd: here, env: { ...process.env, ...env }, encoding: 'utf8', timeout: 60_000,
  });
}

/** Compiles a shared library and returns its path. */
function compile(dir, name, text) {
  const source = path.join(dir, name + '.c');
  const library = path.join(dir, name + '.so');
  fs.writeFileSync(source, text);
  assert.equal(spawnSync('gcc', ['-shared', '-fPIC', '-o', library, source], { stdio: 'inherit' }).status, 0);
  return library;
}

const fds = () => fs.readdirSync('/proc/self/fd').length;

test('every call of the library is offered', () => {
  const listed = [...fs.readFileSync(path.join(root, 'docs/abi.md'), 'utf8').matchAll(/^### sm_(\w+)/gm)].map((m) => m[1]);
  const source = fs.readdirSync(path.join(here, '../lib')).filter((f) => f.endsWith('.cjs'))
    .map((f) => fs.readFileSync(path.join(here, '../lib', f), 'utf8')).join('');
  const used = [...source.matchAll(/(?:call|quick|readStream|writeStream)\((?:this, )?'(\w+)'/g)].map((m) => m[1]);
  const closed = [...source.matchAll(/static kind = '(\w+)'/g)].map((m) => m[1] + '_close');
  assert.deepEqual([...new Set([...used, ...closed])].sort(), listed.sort());
});

test('errors name what is wrong', async () => {
  await assert.rejects(Image.fromOCI('oci:/nowhere', { memoryMib: 'x' }), (e) => {
    assert.ok(e instanceof errors.InvalidArgumentError && e instanceof SupermachineError && e instanceof Error);
    assert.match(e.message, /memoryMib: an integer is needed, and a string was given/);
    assert.deepEqual([e.code, e.errno, e.name], ['SM_ERR_INVALID_ARGUMENT', 2, 'InvalidArgumentError']);
    assert.match(e.stack, /native\.test\.mjs/, 'the stack is of who called');
    return true;
  });
  await assert.rejects(Image.fromOCI('oci:/nowhere', { memoriMib: 5 }), /unknown option "memoriMib"; the nearest one is "memoryMib"/);
  await assert.rejects(Image.fromOCI('oci:/nowhere', { memory_mib: 5 }), /memoryMib/);
  await assert.rejects(Image.fromOCI('oci:/nowhere'), errors.ImageNotFoundError);
  await assert.rejects(supermachine.run('busybox', 'echo hi'), /\['sh', '-c', command\]/);
  await assert.rejects(supermachine.run('busybox', [5]), TypeError);
  assert.throws(() => new Store({ dir: 5 }), errors.InvalidArgumentError);
});

/** A VM that the library does not have: it reads the options first, and then says so. */
const none = Object.create(VM.prototype, { _handle: { value: 1n } });

test('methods of VMs read their options before anything else', async () => {
  const calls = {
    run: (o) => none.run(['x'], o),
    exec: (o) => none.exec(['x'], o),
    spawn: (o) => none.spawn(['x'], o),
    attach: (o) => none.attach(1, o),
    chain: (o) => none.chain([['x']], o),
    chainedCommand: (o) => none.chain([{ args: ['x'], ...o }]),
    chainedFile: (o) => none.chain([], { files: [{ path: '/x', ...o }] }),
    forwardToHost: (o) => none.forwardToHost('/x', o),
    readFile: (o) => none.readFile('/x', { offset: 2 ** 40, length: 0, ...o }),
    writeFile: (o) => none.writeFile('/x', '', { offset: 0, owner: 'a', ...o }),
    createReadStream: (o) => buffer(none.createReadStream('/x', { length: 1, ...o })),
    createWriteStream: (o) => pipeline(Readable.from(['x']), none.createWriteStream('/x', { append: true, ...o })),
    pack: (o) => buffer(none.pack('/x', o)),
    unpack: (o) => pipeline(Readable.from(['x']), none.unpack('/x', o)),
    followConsole: (o) => buffer(none.followConsole(o)),
    copyIn: (o) => none.copyIn('/x', '/y', o),
    copyOut: (o) => none.copyOut('/x', '/y', o),
    stat: (o) => none.stat(Buffer.from('/x'), { follow: false, ...o }),
    list: (o) => none.list('/x', o).next(),
    walk: (o) => none.walk('/x', { depth: 2, ...o }).next(),
    watch: (o) => none.watch('/x', { recursive: true, ...o }),
    mkdir: (o) => none.mkdir('/x', o),
    remove: (o) => none.remove('/x', o),
    rename: (o) => none.rename('/x', '/y', o),
    chmod: (o) => none.chmod('/x', 0o600, o),
    chown: (o) => none.chown('/x', 'a', { follow: false, ...o }),
    symlink: (o) => none.symlink('x', '/y', o),
  };
  for (const [name, f] of Object.entries(calls)) {
    await assert.rejects(async () => f({ typo: 1 }), /unknown option "typo"/, name);
    await assert.rejects(async () => f({}), errors.InvalidHandleError, name);
    if (!name.startsWith('chained')) await assert.rejects(async () => f({ signal: AbortSignal.abort() }), { name: 'AbortError' }, name);
  }
  for (const f of [() => none.programs(), () => none.stats(), () => none.socketPath()]) await assert.rejects(f(), errors.InvalidHandleError);
  await assert.rejects(none.writeFile('/x', '', { append: true, offset: 0 }), /append and offset exclude each other/);
  await assert.rejects(none.chain(['ls', '-l']), /a command is an array.*\['sh', '-c', command\]/);
  await assert.rejects(none.chain('ls'), TypeError);
  await assert.rejects(none.chain([{ arg: ['ls'] }]), TypeError);
  await assert.rejects(none.chain([['ls']], { files: { '/x': 5 } }), /files: element 0: data: bytes is needed/);
  await assert.rejects(none.chain([{ args: ['ls'], timeoutMs: 'x' }]), /commands: element 0: timeoutMs: an integer is needed/);
});

test('integers of more than 32 bits', async () => {
  const store = new Store({ dir: temporary() });
  assert.deepEqual(await store.prune({ maxBytes: 2 ** 32, olderMs: 2 ** 52 }), []);
  await assert.rejects(store.prune({ maxBytes: 1.5 }), /an integer is needed, and a fraction was given/);
  await store.close();
  assert.throws(() => none.setBalloon(2 ** 40), errors.InvalidHandleError);
});

test('metrics, and categories of traces', async () => {
  assert.match(supermachine.metrics(), /^supermachine_vms_open 0$/m);
  await assert.rejects(supermachine.trace(() => {}, { categories: ['nothing'] }), errors.InvalidArgumentError);
  await assert.rejects(supermachine.trace(() => {}, { categories: ['exec', 'fs'], signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' });
});

test('closed objects', async () => {
  const store = new Store({ dir: temporary() });
  assert.deepEqual([await store.images(), await store.snapshots(), store.closed], [[], [], false]);
  await assert.rejects(Image.fromSnapshot('nothing', { store }), errors.NotFoundError);
  await Promise.all([store.close(), store.close()]);
  assert.ok(store.closed);
  await store.close();
});

test('closed stores are refused, not taken for the own one', async () => {
  const store = new Store({ dir: temporary() });
  await store.close();
  await assert.rejects(store.images(), errors.InvalidHandleError);
  await assert.rejects(Image.fromSnapshot('nothing', { store }), errors.InvalidHandleError);
});

test('calls can be aborted, before and while they run', async () => {
  await assert.rejects(supermachine.trace(() => {}, { signal: AbortSignal.abort() }), { name: 'AbortError' });
  const controller = new AbortController();
  const traced = supermachine.trace(() => {}, { signal: controller.signal });
  setTimeout(() => controller.abort(new Error('enough')), 20);
  await assert.rejects(traced, /enough/);
});

test('a process ends though a store is open, and not while a call runs', () => {
  let r = node("import { Store } from 'supermachine-core'; new Store({ dir: process.env.DIR }); console.log('end')", { DIR: temporary() });
  assert.deepEqual([r.status, r.stdout], [0, 'end\n'], r.stderr);
  r = node("import { doctor } from 'supermachine-core'; doctor().then(() => console.log('done'))");
  assert.deepEqual([r.status, r.stdout], [0, 'done\n'], r.stderr);
});

test('exceptions of callbacks are uncaught exceptions, and nothing else stops', () => {
  const r = node(`
    import { doctor } from 'supermachine-core';
    process.on('uncaughtException', (e) => console.log(e.message));
    doctor().then(() => { queueMicrotask(() => { throw new Error('mine'); }); });
    doctor().then(() => setTimeout(() => console.log('goes on'), 50));
  `);
  assert.deepEqual([r.status, r.stdout], [0, 'mine\ngoes on\n'], r.stderr);
});

test('what is forgotten is closed, with a warning', () => {
  const r = node(`
    import { Store } from 'supermachine-core';
    const warned = new Promise((resolve) => process.on('warning', resolve));
    new Store({ dir: process.env.DIR });
    const keep = setInterval(() => gc(), 10);
    const w = await warned;
    clearInterval(keep);
    console.log(w.name, w.message);
  `, { DIR: temporary() }, '--expose-gc');
  assert.deepEqual([r.status, r.stdout], [0, 'ResourceWarning a Store of supermachine-core was garbage-collected without having been closed\n'], r.stderr);
});

test('a library that is not there, or none, or too old', () => {
  const dir = temporary();
  const script = "import 'supermachine-core'";
  let r = node(script, { SUPERMACHINE_LIBRARY: path.join(dir, 'none.so') });
  assert.equal(r.status, 1);
  assert.match(r.stderr, /none\.so: cannot open.*SUPERMACHINE_LIBRARY/);
  fs.writeFileSync(path.join(dir, 'text.so'), 'no library');
  r = node(script, { SUPERMACHINE_LIBRARY: path.join(dir, 'text.so') });
  assert.match(r.stderr, /text\.so: (file too short|invalid ELF header)/);
  const load = (name, text) => node(script, { SUPERMACHINE_LIBRARY: compile(dir, name, text) });
  assert.match(load('other', 'int x;').stderr, /not libsupermachine/);
  const old = 'int sm_abi_version(void) { return 0; } void sm_bytes_free(void) {} int sm_queue_open, sm_queue_next, sm_queue_close, sm_call_abandon;';
  assert.match(load('old', old).stderr, /version 0 of the ABI, and this package needs 1/);
});

test('musl is told before the library is loaded', () => {
  const r = node(`
    process.report.getReport = () => ({ header: {} });
    await import('supermachine-core');
  `, { SUPERMACHINE_LIBRARY: '/nowhere' });
  assert.match(r.stderr, /musl.*Alpine/);
});

test('signals: dispositions and listeners are as they were', () => {
  const r = node(`
    import fs from 'node:fs';
    const mask = () => fs.readFileSync('/proc/self/status', 'utf8').match(/Sig(Ign|Blk):.*/g).join();
    const before = mask();
    const { version } = await import('supermachine-core');
    version();
    console.log(mask() === before, process.listenerCount('SIGCHLD'));
    let n = 0;
    for (const s of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR2', 'SIGQUIT']) process.on(s, (name) => { console.log(name, ++n); });
    const keep = setInterval(() => {}, 1000);
    for (const s of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR2', 'SIGQUIT']) {
      process.kill(process.pid, s);
      await new Promise((resolve) => process.once(s, resolve));
    }
    clearInterval(keep);
  `);
  assert.deepEqual([r.status, r.stdout], [0, 'true 0\nSIGINT 1\nSIGTERM 2\nSIGHUP 3\nSIGUSR2 4\nSIGQUIT 5\n'], r.stderr);
});

test('SIGINT without a listener ends the process by it', () => {
  const r = node("import { version } from 'supermachine-core'; version(); setInterval(() => {}, 1000); process.kill(process.pid, 'SIGINT')");
  assert.equal(r.signal, 'SIGINT');
});

test('the handler of SIGCHLD has a stack of its own, whichever thread loads the library, and whenever the first child comes', () => {
  // Go's runtime needs it: without, a child that ends at the wrong moment has the handler run over the small stack of a goroutine.
  const probe = compile(temporary(), 'probe', `
    #include <signal.h>
    #include <stdio.h>
    __attribute__((constructor)) static void probe(void) {
      struct sigaction a;
      sigaction(SIGCHLD, NULL, &a);
      printf("%s\\n", a.sa_handler == SIG_DFL ? "none" : a.sa_flags & SA_ONSTACK ? "stack of its own" : "no stack");
      fflush(stdout);
    }`);
  const script = `
    import { spawn } from 'node:child_process';
    import { once } from 'node:events';
    import { Worker } from 'node:worker_threads';
    const inMain = process.env.THREAD === 'main';
    if (inMain) await import('supermachine-core');
    else await once(new Worker("require('supermachine-core').version()", { eval: true, execArgv: [] }), 'exit');
    await once(spawn('true'), 'exit');
    process.on('SIGCHLD', () => {}).removeAllListeners('SIGCHLD');
    await once(spawn('true'), 'exit');
    try { process.dlopen({ exports: {} }, process.env.PROBE); } catch {}
  `;
  for (const thread of ['main', 'worker']) {
    const r = node(script, { PROBE: probe, THREAD: thread });
    assert.deepEqual([r.status, r.stdout], [0, 'stack of its own\n'], thread + r.stderr);
  }
});

test('workers have queues of their own, and what they leave open is closed with them', async () => {
  const script = `
    const { parentPort, workerData } = require('node:worker_threads');
    const { Store } = require('supermachine-core');
    const stores = Array.from({ length: 10 }, () => new Store({ dir: workerData }));
    Promise.all(stores.map((s) => s.images())).then(() => parentPort.postMessage(stores.map((s) => s._handle)));
    setInterval(() => {}, 1000);
  `;
  const dir = temporary();
  const handles = [];
  let before;
  for (let i = 0; i < 5; i++) {
    const workers = Array.from({ length: 4 }, () => new Worker(script, { eval: true, workerData: dir }));
    handles.push(...(await Promise.all(workers.map((w) => new Promise((resolve, reject) => w.on('message', resolve).on('error', reject))))).flat());
    await Promise.all(workers.map((w) => w.terminate()));
    before ??= fds();
  }
  assert.equal(fds(), before, 'descriptors of ended workers');
  const store = new Store({ dir });
  assert.equal(new Set(handles).size, 200);
  for (const handle of handles) await assert.rejects(Image.fromSnapshot('x', { store: { _handle: handle } }), errors.InvalidHandleError);
  await store.close();
});

test('workers that are terminated during calls', async () => {
  const script = `
    const { doctor, Store } = require('supermachine-core');
    const { parentPort, workerData } = require('node:worker_threads');
    parentPort.postMessage('up');
    (async () => { for (;;) { const s = new Store({ dir: workerData }); await Promise.all([s.images(), s.snapshots(), doctor()]); await s.close(); } })();
  `;
  const dir = temporary();
  for (let i = 0; i < 20; i++) {
    const w = new Worker(script, { eval: true, workerData: dir });
    await new Promise((resolve, reject) => w.on('message', resolve).on('error', reject));
    await new Promise((resolve) => setTimeout(resolve, i % 7));
    await w.terminate();
  }
});

test('a thousand calls at once do not block the event loop', async () => {
  const store = new Store({ dir: temporary() });
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  await Promise.all(Array.from({ length: 1000 }, () => store.images()));
  clearInterval(timer);
  assert.ok(ticks > 0);
  await store.close();
});
