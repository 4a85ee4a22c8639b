// Files of guests, and what of the host they have.
import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { errors, SupermachineError } from 'supermachine-core';
import { file, image, MIB, temporary, until, vmTest } from './guest.mjs';

vmTest('files', async (vm) => {
  await vm.writeFile('/tmp/a', 'text', { mode: 0o600 });
  assert.equal(await vm.readFile('/tmp/a', { encoding: 'utf8' }), 'text');
  assert.equal((await vm.run(['stat', '-c', '%a', '/tmp/a'])).text, '600\n');
  await vm.writeFile('/tmp/empty', Buffer.alloc(0));
  assert.equal((await vm.readFile('/tmp/empty')).length, 0);
  await pipeline(Readable.from(['n', 'ew']), vm.createWriteStream('/tmp/a'));
  assert.equal(await text(vm.createReadStream('/tmp/a')), 'new');
  const half = vm.createWriteStream('/tmp/a');
  await new Promise((resolve, reject) => half.write('half of it', (e) => (e ? reject(e) : resolve())));
  half.destroy();
  await once(half, 'close');
  assert.equal(await vm.readFile('/tmp/a', { encoding: 'utf8' }), 'new');
  const big = crypto.randomBytes(5 * MIB);
  fs.writeFileSync(file('big'), big, { mode: 0o751 });
  await vm.upload(file('big'), '/tmp/big');
  assert.equal((await vm.run(['stat', '-c', '%a', '/tmp/big'])).text, '751\n');
  await vm.download('/tmp/big', file('back'));
  assert.ok(fs.readFileSync(file('back')).equals(big));
  const part = vm.createReadStream('/tmp/big');
  for await (const chunk of part) {
    assert.ok(chunk.length > 0);
    break;
  }
  assert.ok(part.destroyed);
  await assert.rejects(vm.readFile('/tmp/big', { maxBytes: 1000 }), errors.LimitError);
});

vmTest('names and attributes of files, and parts of them', async (vm) => {
  await vm.mkdir('/tmp/d/sub', { parents: true, mode: 0o750, owner: '1000:1001' });
  await vm.symlink('sub', '/tmp/d/link');
  const before = Date.now();
  await vm.writeFile('/tmp/d/sub/a', 'hello', { owner: '5:6', mode: 0o600 });
  const a = await vm.stat('/tmp/d/link/a');
  assert.deepEqual([a.path, a.type, a.size, a.mode, a.uid, a.gid, a.links, a.error], ['/tmp/d/link/a', 'file', 5, 0o600, 5, 6, 1, '']);
  assert.ok(a.isFile() && !a.isDirectory() && Math.abs(a.mtime - before) < 60_000);
  assert.ok((await vm.stat('/tmp/d/link')).isDirectory());
  const link = await vm.stat('/tmp/d/link', { follow: false });
  assert.deepEqual([link.isSymbolicLink(), link.target], [true, 'sub']);

  await vm.writeFile('/tmp/d/sub/a', ' world', { append: true });
  await vm.writeFile('/tmp/d/sub/a', 'J', { offset: 0 });
  assert.equal(await vm.readFile('/tmp/d/sub/a', { encoding: 'utf8' }), 'Jello world');
  assert.equal(await vm.readFile('/tmp/d/sub/a', { encoding: 'utf8', offset: 2, length: 4 }), 'llo ');
  assert.equal((await vm.readFile('/tmp/d/sub/a', { length: 0 })).length, 0);
  await pipeline(Readable.from(['W']), vm.createWriteStream('/tmp/d/sub/a', { offset: 6 }));
  assert.equal(await text(vm.createReadStream('/tmp/d/sub/a', { offset: 6, highWaterMark: 2 })), 'World');
  assert.equal(await text(vm.createReadStream('/tmp/d/sub/a', { length: 0 })), '');

  const odd = Buffer.concat([Buffer.from('/tmp/d/'), Buffer.from([0xff])]);
  await vm.writeFile(odd, 'odd');
  assert.deepEqual([(await vm.stat(odd)).path, (await vm.readFile(odd)).toString()], [odd, 'odd']);
  const names = async (list) => {
    const all = [];
    for await (const f of list) all.push(f.path.toString('latin1'));
    return all.sort();
  };
  assert.deepEqual(await names(vm.list('/tmp/d')), ['link', 'sub', '\xff']);
  await vm.remove(odd);
  assert.deepEqual(await names(vm.walk('/tmp/d')), ['link', 'sub', 'sub/a']);
  assert.deepEqual(await names(vm.walk('/tmp', { depth: 1 })), ['d']);
  await vm.run(['sh', '-c', 'mkdir /tmp/many; cd /tmp/many; seq 3000 | xargs touch'], { check: true });
  assert.equal((await names(vm.list('/tmp/many'))).length, 3000);
  for await (const f of vm.walk('/')) {
    assert.ok(f.path);
    break;
  }
  const walk = vm.walk('/', { signal: AbortSignal.timeout(20) });
  await assert.rejects(names(walk), { name: 'TimeoutError' });
  await assert.rejects(names(vm.list('/nothing')), errors.NotFoundError);

  await vm.chown('/tmp/d', '7:8', { recursive: true });
  await vm.chown('/tmp/d/link', '9:9', { follow: false });
  await vm.chmod('/tmp/d/sub', 0o2700);
  await vm.rename('/tmp/d/sub', '/tmp/d/new');
  assert.equal((await vm.run(['stat', '-c', '%a %u %g', '/tmp/d/new', '/tmp/d/link'])).text, '2700 7 8\n777 9 9\n');
  assert.equal((await vm.stat('/tmp/d/new')).mode, 0o2700);
  await assert.rejects(vm.rename('/tmp/d/new', '/tmp/d/link', { noReplace: true }), errors.ExistsError);
  await assert.rejects(vm.mkdir('/tmp/d'), errors.ExistsError);
  await assert.rejects(vm.remove('/tmp/d'), errors.NotEmptyError);
  await vm.remove('/tmp/d', { recursive: true });
  await assert.rejects(vm.stat('/tmp/d'), errors.NotFoundError);
});

vmTest('watches', async (vm) => {
  await vm.mkdir('/tmp/w');
  const watch = await vm.watch('/tmp/w', { recursive: true });
  await vm.run(['sh', '-c', 'mkdir /tmp/w/d && echo x > /tmp/w/a && mv /tmp/w/a /tmp/w/b'], { check: true });
  const seen = [];
  for await (const e of watch) {
    seen.push(`${e.op} ${e.from && `${e.from} `}${e.path} ${e.dir}`);
    if (e.op === 'renamed') break;
  }
  for (const event of ['created d true', 'created a false', 'renamed a b false']) assert.ok(seen.includes(event), seen.join());
  await vm.remove('/tmp/w', { recursive: true });
  for await (const e of watch) seen.push(`${e.op} ${e.path}`); // goes on, and ends with the directory
  assert.ok(seen.includes('removed .'), seen.join());
  await watch.close();

  const closed = await vm.watch('/tmp');
  const waiting = closed[Symbol.asyncIterator]().next();
  await closed.close();
  assert.deepEqual(await waiting, { done: true, value: undefined });
  await assert.rejects(closed[Symbol.asyncIterator]().next(), errors.InvalidHandleError);
  const controller = new AbortController();
  const aborted = await vm.watch('/tmp', { signal: controller.signal });
  const next = aborted[Symbol.asyncIterator]().next();
  controller.abort();
  await assert.rejects(next, { name: 'AbortError' });
  assert.ok(aborted.closed);
  await assert.rejects(vm.watch('/nothing'), errors.NotFoundError);
});

vmTest('trees of files', async (vm) => {
  const tree = file('tree');
  fs.mkdirSync(path.join(tree, 'sub'), { recursive: true });
  const big = crypto.randomBytes(3 * MIB);
  fs.writeFileSync(path.join(tree, 'sub/big'), big, { mode: 0o640 });
  fs.symlinkSync('sub/big', path.join(tree, 'link'));
  await vm.copyIn(tree, '/tmp', { owner: '7:8' });
  assert.equal((await vm.run(['stat', '-c', '%a %u %g %s', '/tmp/tree/sub/big'])).text, `640 7 8 ${big.length}\n`);
  await vm.copyOut('/tmp/tree/.', file('copy'));
  assert.ok(fs.readFileSync(file('copy/link')).equals(big));

  await vm.mkdir('/tmp/again');
  await pipeline(vm.pack('/tmp/tree'), vm.unpack('/tmp/again'));
  assert.equal((await vm.run(['cmp', '/tmp/tree/sub/big', '/tmp/again/link'])).code, 0);
  const archive = await buffer(vm.pack('/tmp/tree/sub'));
  const padded = [archive, ...Array(64).fill(Buffer.alloc(65536))]; // as tar does to the end of a record, and more
  await pipeline(Readable.from(padded), vm.unpack('/tmp/again'));
  await assert.rejects(pipeline(Readable.from([archive.subarray(0, 100_000)]), vm.unpack('/tmp/again')), SupermachineError);
  await assert.rejects(pipeline(Readable.from([Buffer.alloc(5000, 'x')]), vm.unpack('/tmp/again')), SupermachineError);
  const given = vm.unpack('/tmp/again');
  await new Promise((resolve, reject) => given.write(archive.subarray(0, 512), (e) => (e ? reject(e) : resolve())));
  given.destroy();
  await once(given, 'close');
  await assert.rejects(buffer(vm.pack('/nothing')), errors.NotFoundError);

  await vm.run(['mkfifo', '/tmp/tree/fifo'], { check: true });
  await assert.rejects(vm.copyOut('/tmp/tree', file('unsafe')), errors.UnsafeError);
  await vm.copyOut('/tmp/tree', file('safe'), { skipSpecial: true });
  await assert.rejects(vm.copyOut('/tmp/tree/sub', file('small'), { maxBytes: 1000 }), errors.LimitError);
  await assert.rejects(vm.copyIn(file('nothing'), '/tmp'), errors.NotFoundError);
});

test('volumes, mounts, a network, and limits to a life', async () => {
  fs.mkdirSync(file('shared'));
  fs.writeFileSync(file('shared/in'), 'host');
  const server = net.createServer((s) => s.end('from the host')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const options = {
    volumes: [`${file('disk')}:/data:size=64M`], mounts: [`${file('shared')}:/shared`, `${temporary}:/all:ro`],
    network: true, egress: [`allow 127.0.0.1:${server.address().port}`], egressDefault: 'deny', networkRate: 2 ** 33,
  };
  let vm = await image.start(options);
  await vm.run(['sh', '-c', 'cat /shared/in /all/shared/in > /shared/out; echo kept > /data/kept; sync'], { check: true });
  assert.equal(fs.readFileSync(file('shared/out'), 'utf8'), 'hosthost');
  assert.equal((await vm.run(['nc', '192.168.127.1', String(server.address().port)])).text, 'from the host');
  assert.notEqual((await vm.run(['nc', '-w', '5', '169.254.169.254', '80'])).code, 0);
  const { netConnections, netRefused } = await vm.stats();
  assert.deepEqual([netConnections, netRefused], [2, 1]);
  await vm.stop();
  await vm.close();
  server.close();
  vm = await image.start({ volumes: [`${file('disk')}:/data:ro`], idleTimeoutMs: 100, lifetimeMs: 20_000 });
  assert.equal(await vm.readFile('/data/kept', { encoding: 'utf8' }), 'kept\n');
  await until(() => vm.info().asleep);
  assert.equal((await vm.run(['echo', 'awake'])).text, 'awake\n');
  assert.equal((await vm.wait()).reason, 'expired');
  await vm.close();
  await assert.rejects(image.start({ mounts: ['/nothing:/x'] }), SupermachineError);
  await assert.rejects(image.start({ egress: ['allow *'] }), errors.InvalidArgumentError);
});
