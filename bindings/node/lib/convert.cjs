'use strict';
// Options and results between JavaScript and the library: names in camel case become those of docs/abi.md and back.

const snake = (name) => name.replace(/[A-Z]/g, (c) => '_' + c.toLowerCase());
const camel = (name) => name.replace(/_([a-z0-9])/g, (_, c) => c.toUpperCase());

/** The handle of a store; none is the user's own. */
const of = (store) => store?._handle ?? 0n;

/** A resource limit, NAME=SOFT[:HARD]. */
const limit = ([name, value]) => `${name}=${[].concat(value).map((v) => (v === Infinity ? 'unlimited' : v)).join(':')}`;

/** A value of an option. What takes more than 32 bits is an integer in msgpack only as a bigint. */
function valueOf(value) {
  if (Number.isSafeInteger(value) && Math.abs(value) > 0x7fffffff) return BigInt(value);
  return typeof value === 'object' && '_handle' in value ? value._handle : value;
}

/** Options for the library. Objects of this package stand for their handles. */
function toLibrary(given = {}) {
  if (given === null || typeof given !== 'object' || Array.isArray(given)) throw new TypeError('options are an object');
  const out = {};
  for (const [key, value] of Object.entries(given)) {
    if (key === 'signal' || key === 'onProgress' || value === undefined || value === null) continue;
    if (/_/.test(key)) throw new TypeError(`unknown option ${JSON.stringify(key)}; names are in camel case, as ${camel(key)}`);
    if (key === 'env' && !Array.isArray(value)) out.env = Object.entries(value).map(([k, v]) => `${k}=${v}`);
    else if (key === 'limits' && !Array.isArray(value)) out.limits = Object.entries(value).map(limit);
    else out[snake(key)] = valueOf(value);
  }
  return out;
}

/** What a call takes besides options: who aborts it, and who is told of its progress. */
function how(given) {
  const { signal, onProgress } = given ?? {};
  return { signal, onEvent: onProgress && ((e) => onProgress(fromLibrary(e))) };
}

/** Results for JavaScript. Counters beyond what a number holds exactly (2^53) lose their last digits. */
function fromLibrary(value) {
  if (typeof value === 'bigint') return Number(value);
  if (Array.isArray(value)) return value.map(fromLibrary);
  if (value instanceof Uint8Array) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [camel(k), fromLibrary(v)]));
}

/** A program's arguments, checked. */
function argv(args) {
  if (!Array.isArray(args)) throw new TypeError("args is an array of the program and its arguments; for a shell command use ['sh', '-c', command]");
  for (const a of args) if (typeof a !== 'string' && !(a instanceof Uint8Array)) throw new TypeError(`an argument is a string or bytes, not ${typeof a}`);
  return args;
}

module.exports = { of, camel, toLibrary, fromLibrary, how, argv };
