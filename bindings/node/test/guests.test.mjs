// What needs guests: programs, streams, files, connections, pools, snapshots, and the host program's own life beside them.
import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import crypto from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { errors, ExitError, Image, metrics, run, Store, trace, VM } from 'supermachine-core';
import { file, image, MIB, REF, until, vmTest } from './guest.mjs';
import './guest-files.mjs';

vmTest('run', async (vm) => {
  const r = await vm.run(['sh', '-c', 'echo out; echo err >&2; exit 3']);
  assert.deepEqual([r.text, r.stderr.toString(), r.code, r.signal, r.timedOut], ['out\n', 'err\n', 3, 0, false]);
  assert.ok(r.durationUs > 0 && r.maxRss > 0);
  const binary = Buffer.from([0xff, 0, 1]);
  assert.deepEqual((await vm.run(['cat'], { stdin: binary })).stdout, binary);
  assert.equal((await vm.run(['cat'], { stdin: 'zażółć' })).text, 'zażółć');
  assert.deepEqual((await vm.run(['printf', '%s', Buffer.from([0xff])])).stdout, Buffer.from([0xff]));
  assert.equal((await vm.run(['sh', '-c', 'echo $A $PWD $(id -u)'], { env: { A: 'b' }, workdir: '/tmp', user: '65534' })).text, 'b /tmp 65534\n');
  assert.equal((await vm.run(['true'])).stdout.length, 0);
  const late = await vm.run(['sleep', '100'], { timeoutMs: 100 });
  assert.ok(late.timedOut && late.signal === os.constants.signals.SIGKILL);
  const bounded = await vm.run(['sh', '-c', 'ulimit -n; ulimit -Hn; seq 100000'], { limits: { nofile: [99, 100] }, maxOutput: 11 });
  assert.equal(bounded.text, '99\n100\n1\n2\n');
  assert.deepEqual([bounded.stdoutTruncated, bounded.stdoutBytes > 500_000, bounded.stderrTruncated, bounded.stderrBytes], [true, true, false, 0]);
  assert.equal((await vm.run(['sh', '-c', 'ulimit -c'], { limits: ['core=0:unlimited'] })).text, '0\n');
  await assert.rejects(vm.run(['true'], { limits: { cpu: [2, 1] } }), errors.InvalidArgumentError);
  await assert.rejects(vm.run(['sh', '-c', 'echo oh no >&2; exit 4'], { check: true }), (e) => {
    assert.ok(e instanceof ExitError && e.result.code === 4);
    assert.equal(e.message, 'sh exited with 4: oh no');
    return true;
  });
});

vmTest('errors', async (vm) => {
  await assert.rejects(vm.run(['nothing']), errors.CommandNotFoundError);
  await assert.rejects(vm.run(['/etc/passwd']), errors.NotExecutableError);
  await assert.rejects(vm.run([]), errors.InvalidArgumentError);
  await assert.rejects(vm.readFile('/nothing'), errors.NotFoundError);
  await assert.rejects(vm.connect(81), errors.RefusedError);
  await assert.rejects(vm.connect(), /no program listens/);
  await assert.rejects(vm.fork({ n: 5000 }), errors.InvalidArgumentError);
  await assert.rejects(buffer(vm.createReadStream('/nothing')), errors.NotFoundError);
  await assert.rejects(pipeline(Readable.from(['x']), vm.createWriteStream('/nothing/x')), errors.NotFoundError);
});

vmTest('streams of programs', async (vm) => {
  let p = await vm.exec(['sh', '-c', 'for i in 1 2 3; do echo line $i; done']);
  const lines = [];
  for await (const line of p) lines.push(line);
  assert.deepEqual(lines, ['line 1', 'line 2', 'line 3']);
  assert.equal((await p.wait()).code, 0);
  await p.close();

  p = await vm.exec(['cat'], { stdin: true });
  const block = crypto.randomBytes(MIB);
  const [, hash] = await Promise.all([
    pipeline(Readable.from(Array(16).fill(block)), p.stdin),
    (async () => {
      const h = crypto.createHash('sha256');
      for await (const chunk of p.stdout) h.update(chunk);
      return h.digest('hex');
    })(),
  ]);
  assert.equal(hash, crypto.createHash('sha256').update(Buffer.concat(Array(16).fill(block))).digest('hex'));
  await p.close();

  p = await vm.exec(['sh', '-c', 'echo a; echo b >&2'], { stderr: true });
  assert.deepEqual(await Promise.all([text(p.stdout), text(p.stderr)]), ['a\n', 'b\n']);
  await p.close();

  p = await vm.exec(['sleep', '100']);
  p.kill('TERM');
  assert.equal((await p.wait()).signal, os.constants.signals.SIGTERM);
  await p.close();

  p = await vm.exec(['sh', '-c', 'stty size; read x; stty size'], { stdin: true, tty: true, rows: 10, cols: 20 });
  p.stdout.once('data', () => {
    p.resize(30, 40);
    p.stdin.write('\n');
  });
  assert.match((await text(p.stdout)).replaceAll('\r', ''), /^10 20\n\n?30 40\n$/);
  await p.close();
  await assert.rejects(p.wait(), errors.InvalidHandleError);
});

vmTest('programs that run by themselves', async (vm) => {
  const { id, pid } = await vm.spawn(['sh', '-c', 'echo kept; read x; echo got $x; exit 3'], { stdin: true, env: { A: 'b' } });
  const programs = await vm.programs();
  assert.equal(programs.more, false);
  assert.deepEqual(programs.map((p) => [p.id, p.pid, p.args[0], p.detached, p.ended]), [[id, pid, 'sh', true, false]]);
  const attached = await vm.attach(id, { stdin: true });
  assert.deepEqual([attached.id, attached.pid], [id, pid]);
  attached.stdin.end('it\n');
  const lines = [];
  for await (const line of attached) lines.push(line);
  assert.deepEqual([lines, (await attached.wait()).code], [['kept', 'got it'], 3]);
  await attached.close();
  assert.equal((await vm.programs()).length, 0);
  await assert.rejects(vm.attach(id), errors.NotFoundError);

  const p = await vm.exec(['sh', '-c', 'echo first; until [ -e /tmp/go ]; do sleep 0.05; done; echo later']);
  await once(p.stdout, 'data');
  await p.detach();
  assert.equal(await text(p.stdout), '');
  await assert.rejects(p.wait(), errors.CanceledError);
  await p.close();
  const unread = await vm.attach(p.id, { stdout: false });
  assert.equal(unread.stdout, undefined);
  const again = await vm.attach(p.id);
  await vm.writeFile('/tmp/go', '');
  assert.equal(await text(again.stdout), 'later\n');
  assert.deepEqual([(await again.wait()).code, (await unread.wait()).code], [0, 0]);
  await again.close();
  await unread.close();
});

vmTest('chains', async (vm) => {
  const files = { '/tmp/in': 'text', '/tmp/bytes': Buffer.from([0xff]) };
  let r = await vm.chain([['cat', '/tmp/in'], { args: ['sh', '-c', 'echo $A >&2; exit 2'], env: { A: 'b' } }, ['true']], { files });
  assert.deepEqual([r.outputs.map((o) => [o.code, o.text, o.stderr.toString()]), r.failed, r.error], [[[0, 'text', ''], [2, '', 'b\n']], 1, '']);
  assert.deepEqual(await vm.readFile('/tmp/bytes'), Buffer.from([0xff]));
  const owned = [{ path: '/tmp/x', data: 'x', mode: 0o640, owner: '7' }];
  r = await vm.chain([['false'], ['stat', '-c', '%a %u', '/tmp/x']], { files: owned, continueOnError: true });
  assert.deepEqual([r.outputs[1].text, r.failed], ['640 7\n', 0]);
  r = await vm.chain([['true'], ['echo', 'long line']], { maxOutput: 4 });
  assert.deepEqual([r.outputs[1].text, r.outputs[1].stdoutTruncated, r.failed], ['long', true, undefined]);
  r = await vm.chain([['true'], ['nothing']]);
  assert.deepEqual([r.outputs.length, r.failed], [2, 1]);
  assert.match(r.error, /nothing/);
});

vmTest('a program that nobody reads from waits, and takes no memory', async (vm) => {
  const p = await vm.exec(['cat', '/dev/zero']);
  await once(p.stdout, 'readable');
  const before = process.memoryUsage().rss;
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.ok(process.memoryUsage().rss - before < 32 * MIB);
  await p.close();
});

vmTest('connections', async (vm) => {
  await vm.run(['sh', '-c', 'nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1'], { check: true });
  const socket = await vm.connect(7);
  assert.ok(socket instanceof net.Socket);
  socket.end('hello');
  assert.equal(await text(socket), 'hello');
  const forward = await vm.forward({ port: 7 });
  const [host, port] = forward.address.split(':');
  const tcp = net.connect({ host, port: Number(port), allowHalfOpen: true });
  tcp.end('hi');
  assert.equal(await text(tcp), 'hi');
  await until(() => forward.stats().open === 0);
  assert.deepEqual(forward.stats(), { open: 0, total: 1, failed: 0, sent: 2, received: 2 });
  await forward.close();
  const refused = net.connect({ host, port: Number(port) });
  assert.equal((await once(refused, 'error').then(([e]) => e)).code, 'ECONNREFUSED');
  const unix = await vm.forward({ port: 7, address: file('socket') });
  const over = net.connect({ path: file('socket'), allowHalfOpen: true });
  over.end('unix');
  assert.equal(await text(over), 'unix');
  await unix.close();
  for (const s of [await vm.connect(), net.connect({ path: await vm.socketPath(), allowHalfOpen: true })]) { // the one that listens
    s.end('found');
    assert.equal(await text(s), 'found');
  }

  const server = net.createServer((s) => s.end('from the host')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const out = await vm.forwardToHost(`127.0.0.1:${server.address().port}`);
  assert.equal(out.address, `127.0.0.1:${out.port}`);
  assert.equal((await vm.run(['nc', '127.0.0.1', String(out.port)])).text, 'from the host');
  assert.equal(out.stats().total, 1);
  await out.close();
  assert.notEqual((await vm.run(['nc', '127.0.0.1', String(out.port)])).code, 0);
  server.close();
});

test('pools', async () => {
  const pool = image.pool({ min: 1, max: 1, acquireTimeoutMs: 60_000 });
  for (let i = 0; i < 3; i++) {
    const vm = await pool.acquire();
    assert.equal((await vm.run(['ls', '/tmp'])).text, '');
    await vm.writeFile('/tmp/mine', 'x');
    await vm.close();
  }
  const { max, acquires, starts } = pool.stats();
  assert.deepEqual([max, acquires, starts], [1, 3, 1]);
  await (await pool.acquire()).discard();
  await pool.close();
  await assert.rejects(pool.acquire(), errors.InvalidHandleError);
  const small = image.pool({ min: 1, max: 1, acquireTimeoutMs: 50 });
  await until(() => small.stats().idle === 1);
  const held = await small.acquire();
  await assert.rejects(small.acquire(), errors.ExhaustedError);
  await held.close();
  await small.close();
  const own = await image.acquire();
  assert.equal(image.poolStats().inUse, 1);
  await own.close();
});

vmTest('snapshots and forks', async (vm) => {
  await vm.writeFile('/tmp/kept', 'kept');
  const children = await vm.fork({ n: 2, names: ['a', 'b'] });
  assert.deepEqual(await Promise.all(children.map(async (c) => (await c.run(['hostname'])).text)), ['a\n', 'b\n']);
  assert.equal(new Set(children.map((c) => c.restoreId)).size, 2);
  for (const c of children) {
    assert.equal(await c.readFile('/tmp/kept', { encoding: 'utf8' }), 'kept');
    await c.close();
  }
  const store = new Store();
  const saved = await vm.snapshot({ name: 'node-test', base: image });
  assert.equal((await store.inspect('node-test')).base, image.id);
  await saved.close();
  const again = await Image.fromSnapshot('node-test', { store });
  const restored = await again.start({ name: 'again' });
  assert.deepEqual([await restored.readFile('/tmp/kept', { encoding: 'utf8' }), restored.name], ['kept', 'again']);
  await restored.close();
  await again.close();
  assert.ok((await store.snapshots()).some((s) => s.name === 'node-test'));
  await store.remove('node-test');
  await assert.rejects(store.inspect('node-test'), errors.NotFoundError);
  await store.close();
});

test('life of a VM', async () => {
  const vm = await image.start({ name: 'mine' });
  const { name, memoryMib, running, vcpus } = vm.info();
  assert.deepEqual({ name, memoryMib, running, vcpus }, { name: 'mine', memoryMib: 96, running: true, vcpus: 1 });
  await vm.run(['true']);
  const stats = await vm.stats();
  assert.ok(stats.totalBytes > 0 && stats.cpuUs > 0 && stats.guestUptimeMs >= stats.timeMs && stats.netConnections === 0);
  assert.match(metrics(), /^supermachine_vms_restored_total [1-9]/m);
  await vm.pause();
  await vm.resume();
  vm.setBalloon(0);
  assert.equal(typeof vm.console(), 'string');
  const ended = vm.wait();
  assert.equal((await vm.stop({ graceMs: 1000 })).reason, 'stopped');
  assert.equal((await ended).reason, 'stopped');
  await assert.rejects(vm.run(['true']), errors.VMEndedError);
  assert.equal(vm.info().running, false);
  await vm.close();
  assert.throws(() => vm.info(), errors.InvalidHandleError);
});

test('a VM that is booted, and its console', async () => {
  const vm = await VM.boot(REF, { memoryMib: 96, lifetimeMs: 600_000 });
  assert.equal((await vm.run(['echo', 'hi'])).text, 'hi\n');
  const console = vm.followConsole();
  let followed = '';
  for await (const chunk of console) if ((followed += chunk).length >= vm.console().length) break;
  assert.ok(followed.includes('BIOS') && followed === vm.console());
  assert.ok(console.destroyed);
  await assert.rejects(buffer(vm.followConsole({ signal: AbortSignal.timeout(20) })), { name: 'AbortError' });
  await vm.close();
});

vmTest('logs of a workload', async (vm) => {
  await vm.startWorkload(['sh', '-c', 'echo started; sleep 1000']);
  const logs = await vm.logs();
  for await (const line of logs) {
    assert.equal(line, 'started');
    break;
  }
  await logs.close();
});

vmTest('aborted calls end what they began', async (vm) => {
  const controller = new AbortController();
  const waiting = vm.run(['sh', '-c', 'touch /tmp/started; sleep 1000'], { signal: controller.signal });
  await until(async () => (await vm.run(['test', '-e', '/tmp/started'])).code === 0);
  controller.abort();
  await assert.rejects(waiting, { name: 'AbortError' });
  await until(async () => !(await vm.run(['ps', '-o', 'args'])).text.includes('sleep 1000'));
  await assert.rejects(vm.wait({ signal: AbortSignal.timeout(50) }), { name: 'TimeoutError' });
  await vm.run(['truncate', '-s', '100G', '/tmp/big'], { check: true });
  const reading = vm.createReadStream('/tmp/big', { signal: AbortSignal.timeout(50) });
  await assert.rejects(buffer(reading), { name: 'AbortError' });
});

test('starts that are aborted leave nothing', async () => {
  const fds = () => fs.readdirSync('/proc/self/fd').length;
  const cycle = async (delay) => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), delay);
    await image.start({ signal: controller.signal }).then((vm) => vm.close(), (e) => assert.equal(e.name, 'AbortError'));
  };
  await cycle(1000);
  const before = fds();
  for (let i = 0; i < 8; i++) await cycle(15 * i);
  await until(() => fds() <= before);
});

test('run by one call, trace beside it', async () => {
  const controller = new AbortController();
  const steps = [];
  const tracing = trace((e) => steps.push(e), { signal: controller.signal, categories: ['restore', 'exec'] }).catch(() => {});
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'supermachine-'));
  fs.writeFileSync(path.join(dir, 'file'), 'hi\n');
  const r = await run(REF, ['cat', '/src/file'], { memoryMib: 96, mounts: [`${dir}:/src:ro`], check: true });
  fs.rmSync(dir, { recursive: true });
  assert.equal(r.text, 'hi\n');
  controller.abort();
  await tracing;
  assert.ok(steps.some((s) => s.category === 'restore' && s.tookUs >= 0));
  assert.ok(steps.every((s) => ['restore', 'exec'].includes(s.category)));
});

vmTest('the event loop turns while calls wait, and libuv threads are free', async (vm) => {
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const sleeping = Promise.all(Array.from({ length: 20 }, () => vm.run(['sleep', '0.5'])));
  await promisify(crypto.pbkdf2)('a', 'b', 10, 10, 'sha256'); // takes a thread of libuv's pool
  await fs.promises.readFile('/proc/self/status');
  const at = turns;
  assert.equal((await vm.run(['true'])).code, 0);
  await sleeping;
  clearInterval(timer);
  assert.ok(turns > at);
});

test('workers have VMs of their own, which end with them', async () => {
  const script = `
    const { parentPort, workerData } = require('node:worker_threads');
    const { Image } = require('supermachine-core');
    (async () => {
      const image = await Image.fromSnapshot(workerData);
      const vm = await image.start();
      parentPort.postMessage((await vm.run(['echo', 'from a worker'])).text);
      await vm.run(['sleep', '1000']);
    })();
  `;
  const fds = () => fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).includes('kvm');
    } catch {
      return false;
    }
  }).length;
  const before = fds();
  const workers = [1, 2].map(() => new Worker(script, { eval: true, workerData: image.id }));
  const said = await Promise.all(workers.map((w) => new Promise((resolve, reject) => w.on('message', resolve).on('error', reject))));
  assert.deepEqual(said, ['from a worker\n', 'from a worker\n']);
  assert.ok(fds() > before);
  await Promise.all(workers.map((w) => w.terminate()));
  await until(() => fds() <= before);
});

test('VMs end with the process', async () => {
  const script = `
    import { Image } from 'supermachine-core';
    const vm = await (await Image.fromSnapshot('${image.id}')).start();
    console.log((await vm.run(['echo', 'hi'])).text);
  `;
  const cwd = path.dirname(new URL(import.meta.url).pathname);
  const r = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { cwd, timeout: 60_000 });
  assert.equal(r.stdout, 'hi\n\n');
});

test('a VM that is forgotten is closed', async () => {
  const warned = once(process, 'warning');
  await (async () => void (await image.start()))();
  const timer = setInterval(() => globalThis.gc(), 10);
  const [warning] = await warned;
  clearInterval(timer);
  assert.match(warning.message, /a VM of supermachine-core was garbage-collected/);
});

test('the program lives through a storm: signals, children, workers and a second Go library beside busy VMs', async () => {
  const end = Date.now() + 1000 * Number(process.env.SUPERMACHINE_STORM ?? 20);
  assert.throws(() => process.dlopen({ exports: {} }, process.env.SUPERMACHINE_SECOND_LIBRARY), /did not self-register/); // loaded it stays
  const counts = { SIGUSR1: 0, SIGUSR2: 0, SIGCHLD: 0, SIGWINCH: 0 };
  const count = (name) => counts[name]++;
  for (const name of Object.keys(counts)) process.on(name, count);
  const busy = Array.from({ length: 2 }, async () => {
    const vm = await image.start();
    while (Date.now() < end) assert.equal((await vm.run(['echo', 'x'])).text, 'x\n');
    await vm.close();
  });
  const children = (async () => {
    let n = 0;
    for (; Date.now() < end; n += 2) {
      assert.deepEqual(await once(spawn('true'), 'exit'), [0, null]);
      assert.equal(spawnSync('sh', ['-c', 'kill -USR1 $PPID; kill -WINCH $PPID; exit 7']).status, 7);
    }
    return n;
  })();
  const workers = (async () => {
    let n = 0;
    for (; Date.now() < end; n++) {
      const w = new Worker("require('supermachine-core').doctor().then(() => process.exit(3))", { eval: true });
      assert.deepEqual(await once(w, 'exit'), [3]);
    }
    return n;
  })();
  while (Date.now() < end) {
    for (const name of ['SIGUSR1', 'SIGUSR2', 'SIGWINCH']) process.kill(process.pid, name);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await Promise.all(busy);
  assert.ok((await children) > 0 && (await workers) > 0);
  for (const [name, n] of Object.entries(counts)) {
    assert.ok(n > 0, name);
    process.removeListener(name, count);
  }
});
