// Tests against a real Redis, each with a server of its own that starts in milliseconds: node --test redis.test.mjs
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { Image } from 'supermachine-core';

let image;
before(async () => {
  // Boots Redis once, until it listens.
  image = await Image.fromOCI(process.env.IMAGE ?? 'redis:7-alpine', { entrypoint: ['redis-server'], guestPort: 6379 });
});
after(() => image?.close());

/** Gives the test a connection to a fresh server. */
async function withRedis(body) {
  const vm = await image.start();
  const connection = await vm.connect();
  try {
    await body(async (command) => {
      connection.write(`${command}\r\n`);
      return String((await once(connection, 'data'))[0]);
    });
  } finally {
    connection.destroy();
    await vm.close();
  }
}

test('values are kept', () => withRedis(async (ask) => {
  assert.equal(await ask('SET greeting hello'), '+OK\r\n');
  assert.equal(await ask('GET greeting'), '$5\r\nhello\r\n');
}));

test('each test has an empty server', () => withRedis(async (ask) => {
  assert.equal(await ask('GET greeting'), '$-1\r\n');
}));
