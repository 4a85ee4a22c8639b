/// <reference types="node" />
import { Socket } from 'node:net';
import { Readable, Writable } from 'node:stream';
import * as c from './calls';

export * from './calls';

/** What gives a call up: its promise rejects with the signal's reason, and what it still makes is released. */
export interface Abortable {
  signal?: AbortSignal;
}

/** What a pull or a bake tells: event is "resolved", "fetch", "convert" or "done", with digest, layer, layers, done and total in bytes; or "step", with step. */
export interface ProgressEvent {
  event: string;
  digest?: string;
  layer?: number;
  layers?: number;
  done?: number;
  total?: number;
  step?: string;
}

export interface Progress {
  onProgress?: (event: ProgressEvent) => void;
}

/** Where images and snapshots are kept; default: the user's own store. */
export interface InStore {
  store?: Store;
}

type Without<T, K extends string> = Omit<T, K>;

/** What every function of this package rejects with or throws when the library refuses or fails. `errors` has a subclass for each code. */
export class SupermachineError extends Error {
  /** SM_ERR_ and the code's name, such as "SM_ERR_IMAGE_NOT_FOUND": the constant's name in C. */
  readonly code: string;
  /** The code's number, the same in every language. */
  readonly errno: number;
  /** What was attempted. */
  readonly op?: string;
  /** What it was attempted on. */
  readonly object?: string;
  /** The last that a workload wrote that did not come up. */
  readonly output?: string;
  /** The last that a guest wrote to its console that did not come up. */
  readonly console?: string;
}

/** What run with check: true rejects with when the program does not exit with 0. */
export class ExitError extends Error {
  readonly result: Result;
}

/** What a program wrote, and how it ended. */
export interface Result extends c.VMRunResult {}
export class Result {
  /** stdout as UTF-8. */
  get text(): string;
}

interface Closable {
  [Symbol.asyncDispose](): Promise<void>;
}

/** An object of the library's. Close it, or use it with `await using`; what is forgotten is closed with a warning. */
declare class Handle {
  /** Whether close was called. */
  get closed(): boolean;
  /** Gives the object up; resolves once it is released. Closing twice is allowed. */
  close(): Promise<void>;
}

/** A program that runs in a VM. Iterating over it gives the lines that it writes to stdout, as UTF-8 and without their ends. */
export interface Process extends Closable {}
export class Process extends Handle implements AsyncIterable<string> {
  private constructor();
  /** Process ID in the guest. */
  readonly pid: number;
  /** End it to end the input; undefined if it was not asked for. */
  readonly stdin?: Socket;
  /** Undefined if it was not asked for. */
  readonly stdout?: Socket;
  /** Undefined if it was not asked for. */
  readonly stderr?: Socket;
  /** Waits for the program's end. What it wrote can still be read. */
  wait(options?: Abortable): Promise<c.ExecWaitResult>;
  /** Sends a signal, such as "TERM", to the program's process group; default "KILL". */
  kill(signal?: string): void;
  /** Changes the size of the program's terminal. */
  resize(rows: number, cols: number): void;
  /** Kills the program if it still runs, and destroys its streams. */
  close(): Promise<void>;
  [Symbol.asyncIterator](): AsyncIterableIterator<string>;
}

/** A listener on the host whose connections go to a port of the guest. */
export interface Forward extends Closable {}
export class Forward extends Handle {
  private constructor();
  /** Where it listens: HOST:PORT or a path. */
  readonly address: string;
}

type Program = Without<c.VMRunOptions, 'args' | 'stdin'>;
type Named<T> = Without<T, 'ref' | 'name' | 'path' | 'data'>;
type FileStream = Abortable & { highWaterMark?: number };
type FileMode = { /** Permission bits; default 0o644. */ mode?: number };

/** A running microVM. */
export interface VM extends Closable {}
export class VM extends Handle {
  private constructor();
  /** Random identifier, 12 hexadecimal digits. */
  readonly id: string;
  /** Name, which is also the guest's host name. */
  readonly name: string;
  /** The random identifier that the guest was given when it was restored; empty for one that was booted. */
  readonly restoreId: string;

  /** Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started. */
  static boot(ref: string, options?: Without<c.VMBootOptions, 'ref'> & InStore & Abortable & Progress): Promise<VM>;

  /** Runs a program to its end and collects what it writes, up to 64 MiB of each stream. check: reject with an ExitError unless it exits with 0. */
  run(args: c.VMRunOptions['args'], options?: Without<c.VMRunOptions, 'args'> & { check?: boolean } & Abortable): Promise<Result>;
  /** Starts a program; resolves once it runs. stdout is given by default. */
  exec(args: c.VMExecOptions['args'], options?: Without<c.VMExecOptions, 'args'> & Abortable): Promise<Process>;
  /** Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped. */
  startWorkload(args: c.VMRunOptions['args'], options?: Program & Abortable): Promise<void>;
  /** Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone. */
  logs(options?: Abortable): Promise<Process>;
  /** Returns the last that the guest's kernel and init wrote to the console. */
  console(options?: c.VMConsoleOptions): string;

  /** Opens a connection to a TCP port of the guest; default: the workload's. */
  connect(port?: number, options?: Abortable): Promise<Socket>;
  /** Listens on the host and connects what arrives to the guest's port. Default: 127.0.0.1 and a free port. */
  forward(options?: c.VMForwardOptions & Abortable): Promise<Forward>;

  /** Reads a file of the guest, of up to 64 MiB. */
  readFile(path: string, options: { encoding: BufferEncoding; maxBytes?: number } & Abortable): Promise<string>;
  readFile(path: string, options?: { maxBytes?: number } & Abortable): Promise<Buffer>;
  /** Creates or replaces a file of the guest, all or nothing. */
  writeFile(path: string, data: Uint8Array | string, options?: FileMode & Abortable): Promise<void>;
  /** Reads a file of the guest, of any size. */
  createReadStream(path: string, options?: FileStream): Readable;
  /** Creates or replaces a file of the guest, of any size: it appears when the stream emits finish; one that is destroyed leaves the old file. */
  createWriteStream(path: string, options?: FileStream & FileMode): Writable;
  /** Copies a file of the host into the guest, with its permissions. */
  upload(source: string, path: string, options?: FileMode & Abortable): Promise<void>;
  /** Copies a file of the guest to the host. */
  download(path: string, target: string, options?: Abortable): Promise<void>;

  /** Stops the guest's processors and devices. */
  pause(options?: Abortable): Promise<void>;
  /** Continues a paused VM. */
  resume(options?: Abortable): Promise<void>;
  /** Saves the running VM as an image that others can be started from. */
  snapshot(options?: c.VMSnapshotOptions & Abortable): Promise<Image>;
  /** Makes n VMs that go on from this instant, while this one goes on too. */
  fork(options?: c.VMForkOptions & Abortable): Promise<VM[]>;

  /** Describes the VM. */
  info(): c.VMInfoResult;
  /** Says what memory the VM takes. */
  memory(options?: Abortable): Promise<c.VMMemoryResult>;
  /** Asks the guest to give up so many bytes of its memory; 0 returns all of it. */
  setBalloon(bytes: number): void;
  /** Waits until the VM has ended and tells why. */
  wait(options?: Abortable): Promise<c.VMWaitResult>;
  /** Asks the guest to shut down, and stops it by force if it does not within graceMs. Tells how it ended. */
  stop(options?: c.VMStopOptions & Abortable): Promise<c.VMStopResult>;
  /** Ends the VM at once. */
  kill(): void;
  /** Like close, but a VM that was acquired from a pool is thrown away. */
  discard(): Promise<void>;
}

/** What VMs start from: a workload that was brought to readiness and frozen. */
export interface Image extends Closable {}
export class Image extends Handle {
  private constructor();
  /** The snapshot's identifier. */
  readonly id: string;

  /**
   * Pulls an OCI image and boots it once, brings its workload to readiness and freezes it. If the store has that already, nothing is booted.
   * ready may be the program, with its arguments, that exits with 0 once the workload is ready.
   */
  static fromOCI(
    ref: string,
    options?: Without<c.ImageFromOCIOptions, 'ref' | 'ready' | 'readyCommand'> & { ready?: string | string[] } & InStore & Abortable & Progress,
  ): Promise<Image>;
  /** Opens a snapshot of the store by its ID, the beginning of it, or its name. */
  static fromSnapshot(name: string, options?: Named<c.ImageFromSnapshotOptions> & InStore & Abortable): Promise<Image>;

  /** Starts a VM, with entropy, clock and host name of its own. */
  start(options?: c.VMStartOptions & Abortable): Promise<VM>;
  /** Takes a VM from the image's own pool, which keeps one ready. Closing it gives it back. */
  acquire(options?: Abortable): Promise<VM>;
  /** Says what the image's own pool has and has done. */
  poolStats(): c.ImagePoolStatsResult;
  /** Describes the image. */
  info(): c.ImageInfoResult;
  /** Makes a pool of VMs. */
  pool(options?: c.PoolNewOptions): Pool;
}

/** Keeps VMs of one image ready. The image must stay open as long. */
export interface Pool extends Closable {}
export class Pool extends Handle {
  private constructor();
  /** Takes a VM, in microseconds if one is ready. Closing it gives it back, and the next user gets a clean one. */
  acquire(options?: Abortable): Promise<VM>;
  /** Says what the pool has and has done. */
  stats(): c.PoolStatsResult;
}

/** Where images and snapshots are kept. The functions that are given none use the user's own. */
export interface Store extends Closable {}
export class Store extends Handle {
  constructor(options?: c.StoreOpenOptions);
  /** Makes an OCI image available and describes it. */
  pull(ref: string, options?: Without<c.StorePullOptions, 'ref'> & Abortable & Progress): Promise<c.StorePullResult>;
  /** Lists the OCI images in the store. */
  images(): Promise<c.StorePullResult[]>;
  /** Forgets the reference of an OCI image. */
  removeImage(ref: string): Promise<void>;
  /** Lists the snapshots in the store, newest first. */
  snapshots(): Promise<c.ImageInfoResult[]>;
  /** Describes one snapshot. */
  inspect(name: string): Promise<c.StoreInspectResult>;
  /** Deletes a snapshot. VMs that were started from it go on. */
  remove(name: string): Promise<void>;
  /** Deletes the snapshots that may go, and describes them. */
  prune(options?: c.StorePruneOptions & Abortable): Promise<c.ImageInfoResult[]>;
  /** Makes a snapshot that holds everything itself from one that holds differences, and resolves to its ID. */
  flatten(name: string, options?: Abortable): Promise<string>;
}

/** Runs a program in a fresh microVM of an OCI image. The image is pulled and booted once; later calls go on from that snapshot. */
export function run(
  ref: string,
  args: c.VMRunOptions['args'],
  options?: Without<c.VMRunOptions, 'args'> & Pick<c.ImageFromOCIOptions, 'memoryMib' | 'vcpus' | 'scratchMib' | 'pull' | 'platform' | 'insecure'> & {
    check?: boolean;
  } & InStore & Abortable & Progress,
): Promise<Result>;

/** Looks at everything that this host needs to run VMs, and changes nothing. */
export function doctor(): Promise<c.DoctorResult>;
/** Says which library this is. */
export function version(): c.VersionResult;
/** Changes how this process decides whether a VM may start. */
export function setAdmission(options?: c.SetAdmissionOptions): void;

export interface TraceEvent {
  category: string;
  object: string;
  step: string;
  startUs: number;
  tookUs: number;
}
/** Calls onEvent for each step of restores, snapshots and bakes until the signal aborts. There is one trace in a process: a new one replaces it. */
export function trace(onEvent: (event: TraceEvent) => void, options?: Abortable): Promise<void>;
