// What calls cost, what a program's output comes at, and how long the event loop stands still while 100 programs write:
// bench.mjs SNAPSHOT BYTES. Prints {"call": [nanoseconds…], "stream": [seconds…], "stall": [milliseconds, p99 of the loop's delay]}.
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Image } from '../../bindings/node/lib/index.mjs';

const [name, bytes] = process.argv.slice(2);
const image = await Image.fromSnapshot(name);
const vm = await image.start();
const call = [];
for (let i = 0; i < 3000; i++) {
  const began = process.hrtime.bigint();
  vm.info();
  call.push(Number(process.hrtime.bigint() - began));
}

async function read(size) {
  const p = await vm.exec(['head', '-c', size, '/dev/zero']);
  const began = performance.now();
  let n = 0;
  for await (const chunk of p.stdout) n += chunk.length;
  if (n !== Number(size)) throw new Error(`${n} bytes came`);
  await p.close();
  return (performance.now() - began) / 1000;
}

const stream = [];
for (let i = 0; i < 3; i++) stream.push(await read(bytes));

const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
await Promise.all(Array.from({ length: 100 }, () => read('500000')));
delay.disable();
await vm.close();
await image.close();
console.log(JSON.stringify({ call, stream, stall: [delay.percentile(99) / 1e6] }));
