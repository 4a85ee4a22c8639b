'use strict';
// Loads the library and makes its calls: those that wait give promises, and only the event loop watches for their ends.

const fs = require('node:fs');
const path = require('node:path');
const { isMainThread } = require('node:worker_threads');
const { Encoder, Decoder } = require('@msgpack/msgpack');
const { SupermachineError, errorFor } = require('./errors.cjs');

const ABI = 1;
const LIBRARY = 'libsupermachine.so.1';
const EVENT = 2; // SM_COMPLETION_EVENT

function load() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Error(`supermachine-core does not run on ${process.platform} ${process.arch} yet; it needs Linux on x64`);
  }
  if (!process.report.getReport().header.glibcVersionRuntime) {
    // Loading a library made by Go would crash, so it is not tried (golang/go#54805).
    throw new Error('supermachine-core needs glibc 2.34 or newer; it cannot be loaded with musl, such as on Alpine Linux');
  }
  const native = path.join(__dirname, '..', 'native');
  const bundled = path.join(native, LIBRARY);
  const file = process.env.SUPERMACHINE_LIBRARY || (fs.existsSync(bundled) ? bundled : LIBRARY); // of the package, or of the system
  const addon = require(path.join(native, 'supermachine.node'));
  let version;
  try {
    version = addon.load(file);
  } catch (e) {
    e.message = `libsupermachine cannot be loaded: ${e.message}; install the package again, or set SUPERMACHINE_LIBRARY to the library's path`;
    throw e;
  }
  if (version < ABI) {
    throw new Error(`${file} has version ${version} of the ABI, and this package needs ${ABI}; install both of one version`);
  }
  return addon;
}

const addon = load();
const encoder = new Encoder({ useBigInt64: true, ignoreUndefined: true });
const decoder = new Decoder({ useBigInt64: true });
const functions = new Map();
const pending = new Map();
let lastTag = 0;
let opened = false;

function resolve(name) {
  let f = functions.get(name);
  if (f === undefined) functions.set(name, (f = addon.resolve(name)));
  return f;
}

function decode(bytes) {
  return bytes.length === 0 ? {} : decoder.decode(bytes);
}

function failure(e) {
  return Array.isArray(e) ? errorFor(e[0], decode(e[1])) : e;
}

/** Makes a call that ends within microseconds. */
function quick(name, handle = 0n, options = {}) {
  try {
    return decode(addon.call(resolve(name), handle, encoder.encodeSharedRef(options)));
  } catch (e) {
    throw failure(e);
  }
}

function onCompletion(tag, kind, code, bytes) {
  const p = pending.get(tag);
  if (p === undefined) return;
  if (kind === EVENT) {
    p.onEvent?.(decode(bytes));
    return;
  }
  pending.delete(tag);
  p.signal?.removeEventListener('abort', p.abort);
  if (code === 0) p.resolve(decode(bytes));
  else p.reject(errorFor(code, decode(bytes)));
}

function start(name, handle, options, { signal, onEvent }) {
  return new Promise((resolvePromise, reject) => {
    signal?.throwIfAborted();
    if (!opened) {
      addon.open(onCompletion, !isMainThread);
      opened = true;
    }
    const tag = ++lastTag;
    let token;
    try {
      token = addon.start(resolve(name), tag, handle, encoder.encodeSharedRef(options));
    } catch (e) {
      throw failure(e);
    }
    const abort = () => {
      if (!pending.delete(tag)) return;
      addon.abandon(token);
      reject(signal.reason);
    };
    signal?.addEventListener('abort', abort, { once: true });
    pending.set(tag, { resolve: resolvePromise, reject, onEvent, signal, abort });
  });
}

/** Makes a call and waits for its end. An abort signal gives it up: what it still makes is released. */
async function call(name, handle = 0n, options = {}, how = {}) {
  try {
    return await start(name, handle, options, how);
  } catch (e) {
    if (e instanceof SupermachineError) Error.captureStackTrace(e, call); // of who called, not of the event loop
    throw e;
  }
}

/** Has an object closed when this thread ends; drop says that it no longer need be. */
const hold = (closer, handle) => addon.hold(resolve(closer), handle);
const drop = (held) => addon.drop(held);

module.exports = { call, quick, hold, drop };
