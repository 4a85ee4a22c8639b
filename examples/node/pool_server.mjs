// A web server that runs the code it is sent, each request in a clean VM of a pool: node pool_server.mjs [IMAGE [PROGRAM [PORT]]]
//
//     curl --data 'console.log(6 * 7)' http://127.0.0.1:8000/
import http from 'node:http';
import { buffer } from 'node:stream/consumers';
import { errors, Image } from 'supermachine-core';

const [ref = 'node:22-slim', program = 'node', port = 8000] = process.argv.slice(2);
const image = await Image.fromOCI(ref, { bootOnly: true, warmup: [[program, '--version']] });
const pool = image.pool({ min: 2, max: 16, acquireTimeoutMs: 5000 });

const server = http.createServer(async (request, response) => {
  const gone = new AbortController(); // of a client that hangs up
  response.on('close', () => gone.abort());
  try {
    const code = await buffer(request);
    const vm = await pool.acquire({ signal: gone.signal }); // microseconds, while one is ready
    try {
      const result = await vm.run([program, '-'], { stdin: code, timeoutMs: 10_000, signal: gone.signal });
      response.writeHead(result.code === 0 ? 200 : 422).end(Buffer.concat([result.stdout, result.stderr]));
    } finally {
      await vm.close();
    }
  } catch (e) {
    if (!gone.signal.aborted) response.writeHead(e instanceof errors.ExhaustedError ? 503 : 500).end(`${e.message}\n`);
  }
});
server.listen(Number(port), '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/`));
process.once('SIGINT', async () => {
  server.close();
  server.closeAllConnections?.();
  await pool.close();
  await image.close();
});
