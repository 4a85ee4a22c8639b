// bench.mjs prints what a call costs that does little, {"call": [nanoseconds…]}; bench.mjs IMAGE BYTES how fast a program's output comes, and how
// long the event loop stands still while 100 programs write: {"stream": [seconds…], "stall": [milliseconds, p99 of the loop's delay]}.
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Image, version } from '../../bindings/node/lib/index.mjs';

const [ref, bytes] = process.argv.slice(2);

function calls() {
  return Array.from({ length: 10_000 }, () => {
    const began = process.hrtime.bigint();
    version();
    return Number(process.hrtime.bigint() - began);
  });
}

async function read(vm, size) {
  const p = await vm.exec(['head', '-c', size, '/dev/zero']);
  const began = performance.now();
  let n = 0;
  for await (const chunk of p.stdout) n += chunk.length;
  if (n !== Number(size)) throw new Error(`${n} bytes came`);
  await p.close();
  return (performance.now() - began) / 1000;
}

async function streams() {
  const image = await Image.fromOCI(ref, { bootOnly: true });
  const vm = await image.start();
  const stream = [];
  for (let i = 0; i < 3; i++) stream.push(await read(vm, bytes));
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  await Promise.all(Array.from({ length: 100 }, () => read(vm, '500000')));
  delay.disable();
  await vm.close();
  await image.close();
  return { stream, stall: [delay.percentile(99) / 1e6] };
}

console.log(JSON.stringify(ref === undefined ? { call: calls() } : await streams()));
