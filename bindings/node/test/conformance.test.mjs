// The cases that all languages share: capi/conformance.
import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { after, before, test } from 'node:test';
import { errors, Image, SupermachineError } from 'supermachine-core';

const cases = JSON.parse(fs.readFileSync(new URL('../../../capi/conformance/cases.json', import.meta.url)));
const codes = JSON.parse(fs.readFileSync(new URL('../lib/codes.json', import.meta.url)));
const BLOCK = Buffer.from(Array.from({ length: 65536 }, (_, i) => (i * 31 + (i >> 8)) & 255));
const LISTEN = 'nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1';

/** @type {Image} */
let image;
before(async () => {
  image = await Image.fromOCI(`oci:${process.env.SUPERMACHINE_TEST_IMAGES}/busybox:latest`, { bootOnly: true, memoryMib: 96 });
});
after(() => image?.close());

/** Data of the cases as Buffers. */
function plain(v) {
  if (Array.isArray(v)) return v.map(plain);
  if (v === null || typeof v !== 'object') return v;
  if ('text' in v) return Buffer.from(v.text);
  if ('hex' in v) return Buffer.from(v.hex, 'hex');
  return Object.fromEntries(Object.entries(v).map(([k, x]) => [k, plain(x)]));
}

async function echo(socket, data) {
  socket.end(data);
  return { data: await buffer(socket) };
}

const operations = {
  async run(vm, { args, timeout_ms: timeoutMs, ...options }) {
    const r = await vm.run(args, { timeoutMs, ...options });
    return { code: r.code, signal: r.signal, timed_out: r.timedOut, stdout: r.stdout, stderr: r.stderr };
  },
  async cat(vm, { bytes }) {
    const p = await vm.exec(['cat'], { stdin: true });
    const hash = crypto.createHash('sha256');
    let n = 0;
    const writing = pipeline(Readable.from(Array(bytes / BLOCK.length).fill(BLOCK)), p.stdin);
    for await (const chunk of p.stdout) {
      hash.update(chunk);
      n += chunk.length;
    }
    await writing;
    await p.close();
    return { bytes: n, sha256: hash.digest('hex') };
  },
  async file(vm, { path, data, mode }) {
    await vm.writeFile(path, data, { mode });
    return { data: await vm.readFile(path), mode: (await vm.run(['stat', '-c', '%a', path])).text.trim() };
  },
  read: (vm, { path }) => vm.readFile(path),
  async connect(vm, { port, data }) {
    await vm.run(['sh', '-c', LISTEN], { check: true });
    return echo(await vm.connect(port), data);
  },
  async forward(vm, { port, data }) {
    await vm.run(['sh', '-c', LISTEN], { check: true });
    const f = await vm.forward({ port });
    const [host, number] = f.address.split(':');
    const said = await echo(net.connect({ host, port: Number(number), allowHalfOpen: true }), data);
    await f.close();
    return said;
  },
  async pool(vm, { max, rounds }) {
    const pool = image.pool({ max });
    const listings = [];
    for (let i = 0; i < rounds; i++) {
      const mine = await pool.acquire();
      listings.push((await mine.run(['ls', '/tmp'])).stdout);
      await mine.writeFile('/tmp/mine', 'x');
      await mine.close();
    }
    const { starts } = pool.stats();
    await pool.close();
    return { listings, starts };
  },
  async exhaust(vm, { max, acquire_timeout_ms: acquireTimeoutMs }) {
    const pool = image.pool({ min: max, max, acquireTimeoutMs });
    while (pool.stats().idle < max) await new Promise((resolve) => setTimeout(resolve, 20));
    const held = await Promise.all(Array.from({ length: max }, () => pool.acquire()));
    try {
      await pool.acquire();
    } finally {
      await Promise.all(held.map((v) => v.close()));
      await pool.close();
    }
  },
  async snapshot(vm, { path, data }) {
    await vm.writeFile(path, data);
    const saved = await vm.snapshot({ base: image });
    const again = await saved.start();
    const r = { data: await again.readFile(path) };
    await again.close();
    await saved.close();
    return r;
  },
  async fork(vm, { n, path, data }) {
    await vm.writeFile(path, data);
    const children = await vm.fork({ n });
    const r = { data: await Promise.all(children.map((c) => c.readFile(path))) };
    await Promise.all(children.map((c) => c.close()));
    return r;
  },
  async cancel(vm, { args }) {
    await assert.rejects(vm.run(args, { signal: AbortSignal.timeout(500) }), { name: 'TimeoutError' });
    for (let i = 0; i < 600; i++) {
      if (!(await vm.run(['ps', '-o', 'args'])).text.includes(args.join(' '))) return { gone: true };
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return { gone: false };
  },
  open: (vm, { name }) => Image.fromSnapshot(name),
  bake: (vm, { ref, memory_mib: memoryMib }) => Image.fromOCI(ref, { memoryMib }),
  async closed() {
    const mine = await image.start();
    await mine.close();
    mine.info();
  },
  async ended(vm) {
    vm.kill();
    await vm.wait();
    await vm.run(['true']);
  },
};

for (const c of cases) {
  test(c.name, async () => {
    const vm = await image.start();
    try {
      const doing = operations[c.do](vm, plain(c.with));
      if (!c.error) {
        assert.deepEqual(await doing, plain(c.gives));
        return;
      }
      const known = codes.find((k) => k.name === c.error);
      await assert.rejects(doing, (e) => {
        assert.ok(e instanceof errors[known.class] && e instanceof SupermachineError, e);
        assert.deepEqual([e.errno, e.code], [known.code, `SM_ERR_${c.error.toUpperCase()}`]);
        return true;
      });
    } finally {
      await vm.close();
    }
  });
}
