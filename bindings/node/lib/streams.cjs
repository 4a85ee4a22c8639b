'use strict';
// Streams over file descriptors of the library, which are one end of a socket pair each.

const net = require('node:net');
const { Readable, Writable, addAbortSignal } = require('node:stream');
const { call } = require('./native.cjs');
const { toLibrary } = require('./convert.cjs');
const { Handle } = require('./handle.cjs');

/** A connected socket that owns the descriptor; undefined if there is none. */
function socketOf(fd, { readable = true, writable = true } = {}) {
  return fd < 0 ? undefined : new net.Socket({ fd, readable, writable, allowHalfOpen: true });
}

class Transfer extends Handle {
  static kind = 'file';
}

/** Opens a transfer; the stream that is made of it is ready once it is. */
async function open(vm, name, options, signal) {
  const r = await call(name, vm._handle, options, { signal });
  return { transfer: new Transfer(r.file), socket: socketOf(r.fd) };
}

/** What a call of the library's reads, as a Readable. It ends only if all of it was read. */
function readStream(vm, name, options, convert = toLibrary) {
  const { signal, highWaterMark, ...asked } = options;
  const request = convert(asked);
  let opened;
  const stream = new Readable({
    highWaterMark,
    construct(done) {
      open(vm, name, request, signal).then((o) => {
        opened = o;
        o.socket.on('data', (chunk) => {
          if (asked.length !== 0 && !stream.push(chunk)) o.socket.pause();
        });
        o.socket.on('error', (e) => stream.destroy(e));
        o.socket.on('end', () => call('file_wait', o.transfer._handle).then(() => stream.push(null), (e) => stream.destroy(e)));
        o.socket.pause();
        done();
      }, (e) => done(stream.destroyed ? null : e)); // one that was aborted has its error already
    },
    read() {
      opened.socket.resume();
    },
    destroy: (error, done) => giveUp(opened, error, done),
  });
  return signal ? addAbortSignal(signal, stream) : stream;
}

/** What a call of the library's takes, as a Writable. A file that it creates or replaces appears when it emits finish. */
function writeStream(vm, name, options, convert = toLibrary) {
  const { signal, highWaterMark, ...asked } = options;
  const request = convert(asked);
  let opened;
  const stream = new Writable({
    highWaterMark,
    construct(done) {
      open(vm, name, request, signal).then((o) => {
        opened = o;
        // A transfer that fails ends the socket from the other side, and what is written gets EPIPE: the transfer knows why.
        o.socket.on('error', () => call('file_wait', o.transfer._handle).then(() => {}, (e) => stream.destroy(e)));
        o.socket.resume();
        done();
      }, (e) => done(stream.destroyed ? null : e)); // one that was aborted has its error already
    },
    write(chunk, _, done) {
      // What follows the end of an archive may find nobody who reads it.
      opened.socket.write(chunk, (e) => (e ? call('file_wait', opened.transfer._handle).then(() => done(), done) : done()));
    },
    final(done) {
      opened.socket.end(() => call('file_wait', opened.transfer._handle).then(() => done(), done));
    },
    destroy: (error, done) => giveUp(opened, error, done),
  });
  return signal ? addAbortSignal(signal, stream) : stream;
}

function giveUp(opened, error, done) {
  if (opened === undefined) return done(error);
  opened.transfer.close().then(() => {}, () => {}).then(() => {
    opened.socket.destroy();
    done(error);
  });
}

module.exports = { socketOf, readStream, writeStream };
