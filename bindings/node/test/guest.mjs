// What the tests with guests share: an image, and VMs of it.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Image } from 'supermachine-core';

export const MIB = 1 << 20;
export const REF = `oci:${process.env.SUPERMACHINE_TEST_IMAGES}/busybox:latest`;
export const temporary = fs.mkdtempSync(path.join(os.tmpdir(), 'supermachine-node-'));
export const file = (name) => path.join(temporary, name);

/** @type {Image} */
export let image;
before(async () => {
  assert.ok(process.env.SUPERMACHINE_TEST_IMAGES, 'needs guests: run it by make test');
  const events = new Set();
  image = await Image.fromOCI(REF, { bootOnly: true, memoryMib: 96, onProgress: (e) => events.add(e.event) });
  for (const name of ['resolved', 'done', 'step']) assert.ok(events.has(name), name);
});
after(() => image?.close());

/** A test with a VM of its own. */
export function vmTest(name, body) {
  test(name, async () => {
    const vm = await image.start();
    try {
      await body(vm);
    } finally {
      await vm.close();
    }
  });
}

export async function until(condition) {
  for (const end = Date.now() + 60_000; !(await condition()); ) {
    assert.ok(Date.now() < end, 'it does not come');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
