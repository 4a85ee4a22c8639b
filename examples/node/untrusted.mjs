// Runs untrusted JavaScript or Python code: node untrusted.mjs [IMAGE [PROGRAM]] < CODE
//
// The code gets a VM of its own, restored from one in which the interpreter has run already, and no network; after ten seconds it is killed.
import { buffer } from 'node:stream/consumers';
import { Image } from 'supermachine-core';

const [ref = 'node:22-slim', program = 'node'] = process.argv.slice(2);
const image = await Image.fromOCI(ref, {
  bootOnly: true, memoryMib: 256, warmup: [[program, '--version']], onProgress: (e) => console.error(e),
});
const vm = await image.start();
try {
  const result = await vm.run([program, '-'], { stdin: await buffer(process.stdin), timeoutMs: 10_000 });
  process.stdout.write(result.stdout);
  process.stderr.write(result.stderr);
  if (result.timedOut) console.error('it took longer than ten seconds');
  process.exitCode = result.code;
} finally {
  await vm.close();
  await image.close();
}
