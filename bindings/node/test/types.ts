// Checked by tsc --strict, never run: what users write compiles, and what is wrong does not.
import { errors, Image, Pool, run, Store, SupermachineError, VM, type Result } from 'supermachine-core';

export async function right(signal: AbortSignal): Promise<string> {
  await using store = new Store({ dir: '/tmp/x' });
  await using image = await Image.fromOCI('nginx', { memoryMib: 512, ready: ['true'], warmup: [['ls']], env: { A: 'b' }, store, onProgress: (e) => console.log(e.event) });
  await using vm: VM = await image.start({ name: 'a' });
  const r: Result = await vm.run(['ls', new Uint8Array()], { timeoutMs: 5000, signal, check: true, stdin: 'x' });
  await using p = await vm.exec(['cat'], { stdin: true });
  p.stdin?.end('x');
  for await (const line of p) line.trim();
  const pool: Pool = image.pool({ min: 1, max: 5 });
  const n: number = pool.stats().idle + (await p.wait()).maxRss;
  const socket = await vm.connect(80);
  socket.end();
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
  return r.text + n + child?.id + saved.id + text + bytes.length + names.join();
}

export async function wrong(image: Image, vm: VM): Promise<void> {
  // @ts-expect-error: an unknown option
  await image.start({ memory: 5 });
  // @ts-expect-error: not an array
  await vm.run('ls');
  // @ts-expect-error: a number is needed
  await Image.fromOCI('x', { memoryMib: 'much' });
  // @ts-expect-error: only functions of the package make one
  new VM();
}
