// Checked by tsc --strict, never run: what users write compiles, and what is wrong does not.
import type { Readable } from 'node:stream';
import { errors, Image, metrics, Pool, run, Store, SupermachineError, VM, type Result } from 'supermachine-core';

export async function right(signal: AbortSignal): Promise<string> {
  await using store = new Store({ dir: '/tmp/x' });
  await using image = await Image.fromOCI('nginx', { memoryMib: 512, ready: ['true'], warmup: [['ls']], env: { A: 'b' }, store, onProgress: (e) => console.log(e.event) });
  await using vm: VM = await image.start({ name: 'a', volumes: ['/a:/b'], network: true, egress: ['allow *.org'], idleTimeoutMs: 60_000 });
  const r: Result = await vm.run(['ls', new Uint8Array()], { timeoutMs: 5000, signal, check: true, stdin: 'x' });
  await using p = await vm.exec(['cat'], { stdin: true });
  p.stdin?.end('x');
  for await (const line of p) line.trim();
  const pool: Pool = image.pool({ min: 1, max: 5 });
  const n: number = pool.stats().idle + (await p.wait()).maxRss;
  const socket = await vm.connect(80);
  socket.end();
  const spawned = await vm.spawn(['sleep', '9'], { limits: { nofile: 1024, as: [2n ** 32n, 'unlimited'] }, stdin: true });
  await using attached = await vm.attach(spawned.id, { stderr: true, signal });
  await attached.detach();
  const command: string | Buffer | undefined = (await vm.programs())[0]?.args[0];
  const chained = await vm.chain([['ls'], { args: ['make'], env: { A: 'b' }, limits: ['cpu=1'] }], { files: { '/a': 'x', '/b': new Uint8Array() } });
  if (chained.failed !== undefined) chained.outputs[chained.failed]?.text.trim();
  for await (const f of vm.walk('/etc', { depth: 3, signal })) if (f.isDirectory()) f.mtime.getTime();
  await using watch = await vm.watch(command ?? '/', { recursive: true, signal });
  for await (const e of watch) console.log(e.op, e.path, e.from, e.dir);
  await vm.writeFile('/a', 'x', { offset: 5, owner: 'user' });
  vm.pack('/etc').pipe(vm.unpack('/copy', { skipSpecial: true, highWaterMark: 1 }));
  await vm.copyOut('/etc', './etc', { maxBytes: 1e9 });
  const served = (await vm.forwardToHost('127.0.0.1:80', { port: 80 })).port ?? 0;
  const sent: number = (await vm.forward()).stats().sent + served + (await vm.stats()).cpuUs;
  const console_: Readable = vm.followConsole({ signal });
  const [child] = await vm.fork({ n: 2 });
  const saved = await vm.snapshot({ base: image, store });
  const text: string = await vm.readFile('/etc/passwd', { encoding: 'utf8' });
  const bytes: Buffer = await vm.readFile('/etc/passwd');
  const names: string[] = (await store.snapshots()).map((s) => s.name);
  try {
    await run('busybox', ['true'], { memoryMib: 128, pull: 'never' });
  } catch (e) {
    if (e instanceof errors.ImageNotFoundError) return e.code;
    if (e instanceof SupermachineError) return e.op ?? '';
  }
  console_.destroy();
  return metrics() + sent + r.text + n + child?.id + saved.id + text + bytes.length + names.join();
}

export async function wrong(image: Image, vm: VM): Promise<void> {
  // @ts-expect-error: an unknown option
  await image.start({ memory: 5 });
  // @ts-expect-error: not an array
  await vm.run('ls');
  // @ts-expect-error: a number is needed
  await Image.fromOCI('x', { memoryMib: 'much' });
  // @ts-expect-error: an offset alone means that
  await vm.writeFile('/a', 'x', { inPlace: true });
  // @ts-expect-error: no limit is a truth value
  await vm.run(['ls'], { limits: { cpu: true } });
  // @ts-expect-error: a command is an array
  await vm.chain(['ls']);
  // @ts-expect-error: only functions of the package make one
  new VM();
}
