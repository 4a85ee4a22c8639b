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

/** What a resource may be: a number in its unit, or as it is said of none. */
export type Limit = number | bigint | 'unlimited';
/**
 * Resource limits by their names in setrlimit(2), such as nofile: one value, or what holds and up to which the program may raise it; or an array of
 * NAME=SOFT[:HARD].
 */
export type Limits = Record<string, Limit | [soft: Limit, hard: Limit]> | string[];
type Limited<T> = Omit<T, 'limits'> & { /** They hold from the program's first instruction on. */ limits?: Limits };
type Command<T> = Limited<Without<T, 'args'>> & Abortable;

/** A path in the guest, absolute; bytes if it is not UTF-8. */
export type GuestPath = string | Uint8Array;

/** A program of a VM, as it is listed. */
export interface ProgramInfo extends Omit<c.ProgramInfo, 'args'> {
  /** The program and its arguments, at most 4096 bytes of them. */
  args: (string | Buffer)[];
}

/** How a chain went. */
export interface ChainResult {
  /** Of the programs, in order; one that could not be run has an empty one. */
  outputs: Result[];
  /** Which was the first to fail, counted from 0; undefined: none. */
  failed?: number;
  /** Why a program could not be run; empty if all were. */
  error: string;
}

/** A program that runs in a VM. Iterating over it gives the lines that it writes to stdout, as UTF-8 and without their ends. */
export interface Process extends Closable {}
export class Process extends Handle implements AsyncIterable<string> {
  private constructor();
  /** Its number in the guest, for VM.attach. */
  readonly id: number;
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
  /** Has the program run on by itself: its streams and wait end, and VM.attach attaches to it. Of an attachment it ends that alone. */
  detach(options?: Abortable): Promise<void>;
  /** Kills the program if it still runs and is not detached, and destroys its streams. */
  close(): Promise<void>;
  [Symbol.asyncIterator](): AsyncIterableIterator<string>;
}

/** A listener: of VM.forward on the host, its connections go to a port of the guest; of VM.forwardToHost in the guest, they go to a server of the host. */
export interface Forward extends Closable {}
export class Forward extends Handle {
  private constructor();
  /** Where it listens: HOST:PORT or a path. */
  readonly address: string;
  /** The guest's port, of VM.forwardToHost. */
  readonly port?: number;
  /** Says what it has done so far. */
  stats(): c.ForwardStatsResult;
}

/** A file of the guest. */
export interface FileInfo extends c.VMStatResult {}
export class FileInfo {
  private constructor();
  /** When its contents last changed. */
  get mtime(): Date;
  isFile(): boolean;
  isDirectory(): boolean;
  isSymbolicLink(): boolean;
}

/**
 * Tells what happens to files of the guest. Iterating over it waits for that, and ends once what was watched is gone, or the watch is closed; after break
 * another loop goes on.
 */
export interface Watch extends Closable {}
export class Watch extends Handle implements AsyncIterable<c.FileEvent> {
  private constructor();
  [Symbol.asyncIterator](): AsyncIterableIterator<c.FileEvent>;
}

type Named<T> = Without<T, 'ref' | 'name' | 'path' | 'data'>;
type FileStream = Abortable & { highWaterMark?: number };
type Writing = Without<c.VMCreateFileOptions, 'path' | 'inPlace' | 'offset'> & {
  /** Write over the contents of an existing file from there on, in bytes; its mode and owner stay. This is not atomic. */
  offset?: number;
};
type Following = { /** What a symbolic link points to is meant, and not the link; default true. */ follow?: boolean };

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

  /** Runs a program to its end and collects what it writes, up to 64 MiB of each stream; beyond maxOutput it is dropped. check: reject with an ExitError unless it exits with 0. */
  run(args: c.VMRunOptions['args'], options?: Command<c.VMRunOptions> & { check?: boolean }): Promise<Result>;
  /** Starts a program; resolves once it runs. stdout is given by default. */
  exec(args: c.VMExecOptions['args'], options?: Command<c.VMExecOptions>): Promise<Process>;
  /** Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for attach. */
  spawn(args: c.VMSpawnOptions['args'], options?: Command<c.VMSpawnOptions>): Promise<c.VMSpawnResult>;
  /**
   * Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes. stdout is given by default.
   * Closing ends the attachment alone. Once the exit status was waited for the guest forgets the program.
   */
  attach(id: number, options?: Without<c.VMAttachOptions, 'id'> & Abortable): Promise<Process>;
  /** Lists the programs that run, and those that ran by themselves and whose exit status nobody has got, the oldest first. more: there are more than 4096. */
  programs(options?: Abortable): Promise<ProgramInfo[] & { more: boolean }>;
  /** Writes files and runs programs one after another, until one of them fails. files may say what shall be in each by its path. */
  chain(
    commands: (c.VMRunOptions['args'] | Limited<c.Program>)[],
    options?: Without<c.VMChainOptions, 'commands' | 'files'> & { files?: Record<string, Uint8Array | string> | c.ChainFile[] } & Abortable,
  ): Promise<ChainResult>;
  /** Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped. */
  startWorkload(args: c.VMRunOptions['args'], options?: Command<c.VMStartWorkloadOptions>): Promise<void>;
  /** Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone. */
  logs(options?: Abortable): Promise<Process>;
  /** Returns the last that the guest's kernel and init wrote to the console. */
  console(options?: c.VMConsoleOptions): string;
  /** Reads what the guest's kernel and init write to the console, from what is kept of it on. */
  followConsole(options?: FileStream): Readable;

  /** Opens a connection to a TCP port of the guest; default: the workload's, or the one on which a program has listened longest. */
  connect(port?: number, options?: Abortable): Promise<Socket>;
  /** Listens on the host and connects what arrives to the guest's port. Default: 127.0.0.1 and a free port, and the port as for connect. */
  forward(options?: c.VMForwardOptions & Abortable): Promise<Forward>;
  /** Has the guest listen on a port of its loopback address, by default a free one, and connects what arrives to a server of the host: HOST:PORT or a path. */
  forwardToHost(address: string, options?: Without<c.VMForwardToHostOptions, 'address'> & Abortable): Promise<Forward>;
  /** Returns the path of a Unix socket that leads to the workload's port, for other processes of the same user. */
  socketPath(options?: Abortable): Promise<string>;

  /** Reads a file of the guest, of up to 64 MiB, or length bytes from offset on. */
  readFile(path: GuestPath, options: { encoding: BufferEncoding } & Named<c.VMReadFileOptions> & Abortable): Promise<string>;
  readFile(path: GuestPath, options?: Named<c.VMReadFileOptions> & Abortable): Promise<Buffer>;
  /** Creates or replaces a file of the guest, all or nothing, unless it is to append or to begin at an offset. */
  writeFile(path: GuestPath, data: Uint8Array | string, options?: Writing & Abortable): Promise<void>;
  /** Reads a file of the guest, of any size. */
  createReadStream(path: GuestPath, options?: Named<c.VMOpenFileOptions> & FileStream): Readable;
  /** Creates or replaces a file of the guest, of any size: it appears when the stream emits finish; one that is destroyed leaves the old file. */
  createWriteStream(path: GuestPath, options?: Writing & FileStream): Writable;
  /** Copies a file of the host into the guest, with its permissions. */
  upload(source: string, path: GuestPath, options?: Writing & Abortable): Promise<void>;
  /** Copies a file of the guest to the host. */
  download(path: GuestPath, target: string, options?: Abortable): Promise<void>;

  /** Describes a file. */
  stat(path: GuestPath, options?: Following & Abortable): Promise<FileInfo>;
  /** Lists a directory. */
  list(path: GuestPath, options?: Abortable): AsyncGenerator<FileInfo, void, undefined>;
  /** Lists everything below a directory, or so deep; links are not followed. */
  walk(path: GuestPath, options?: Named<c.VMListOptions> & Abortable): AsyncGenerator<FileInfo, void, undefined>;
  /** Watches a file or a directory; resolves once changes are seen. The signal ends the watch too. */
  watch(path: GuestPath, options?: Named<c.VMWatchOptions> & Abortable): Promise<Watch>;
  /** Makes a directory. */
  mkdir(path: GuestPath, options?: Named<c.VMMkdirOptions> & Abortable): Promise<void>;
  /** Removes a file, a link or an empty directory, or everything in one. */
  remove(path: GuestPath, options?: Named<c.VMRemoveOptions> & Abortable): Promise<void>;
  /** Gives a file or a directory another name in the same file system, and replaces what has that. */
  rename(path: GuestPath, to: GuestPath, options?: Without<c.VMRenameOptions, 'path' | 'to'> & Abortable): Promise<void>;
  /** Sets permissions. */
  chmod(path: GuestPath, mode: number, options?: Without<c.VMChmodOptions, 'path' | 'mode'> & Abortable): Promise<void>;
  /** Sets the owner: NAME|UID[:GROUP|GID] of the image's accounts, or :GROUP alone. */
  chown(path: GuestPath, owner: string, options?: Without<c.VMChownOptions, 'path' | 'owner' | 'noFollow'> & Following & Abortable): Promise<void>;
  /** Makes a symbolic link to target. */
  symlink(target: GuestPath, path: GuestPath, options?: Abortable): Promise<void>;

  /** Reads a file or a tree as a tar archive. Unpack it as one that may be hostile. */
  pack(path: GuestPath, options?: Named<c.VMPackOptions> & FileStream): Readable;
  /** Unpacks a tar archive into a directory, and never outside of it. It is all there when the stream emits finish; one that is destroyed may leave a part. */
  unpack(path: GuestPath, options?: Named<c.VMUnpackOptions> & FileStream): Writable;
  /** Copies a file or a tree of the host into the guest, as cp -a does: into target if that is a directory, else under that name. */
  copyIn(source: string | Uint8Array, target: GuestPath, options?: Without<c.VMCopyInOptions, 'source' | 'target'> & Abortable): Promise<void>;
  /** Copies a file or a tree of the guest to the host by the same rule. Whatever is in the guest, nothing outside of the copy is written. */
  copyOut(source: GuestPath, target: string | Uint8Array, options?: Without<c.VMCopyOutOptions, 'source' | 'target'> & Abortable): Promise<void>;

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
  /** Measures what the VM uses and has used, and asks its guest. */
  stats(options?: Abortable): Promise<c.VMStatsResult>;
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
  options?: Command<c.VMRunOptions> & Pick<c.ImageFromOCIOptions, 'memoryMib' | 'vcpus' | 'scratchMib' | 'pull' | 'platform' | 'insecure'> &
    Pick<c.VMStartOptions, 'volumes' | 'mounts' | 'network' | 'egress' | 'egressDefault'> & {
    check?: boolean;
  } & InStore & Progress,
): Promise<Result>;

/** Looks at everything that this host needs to run VMs, and changes nothing. */
export function doctor(): Promise<c.DoctorResult>;
/** Says which library this is. */
export function version(): c.VersionResult;
/** Changes how this process decides whether a VM may start. */
export function setAdmission(options?: c.SetAdmissionOptions): void;

/** Returns what this process has done so far and has open, as text in Prometheus' format. */
export function metrics(): string;

export interface TraceEvent {
  category: string;
  object: string;
  step: string;
  startUs: number;
  tookUs: number;
}
/** Calls onEvent for each step of what the library does until the signal aborts. */
export function trace(
  onEvent: (event: TraceEvent) => void,
  options?: { /** Of boot, restore, snapshot, bake, exec, vsock, fs, net, pool and oci; default: all. */ categories?: string[] } & Abortable,
): Promise<void>;
