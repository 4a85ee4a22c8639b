// Made by `make abi` from the table in capi/api.

import { Image, Store, SupermachineError } from './index';

/** Runs a program to its end and collects its output. */
export interface VMRunOptions {
  /** The program and its arguments; required. A program without a slash is looked up in the guest's PATH. */
  args: (string | Uint8Array)[];
  /** NAME=value, over the image's environment. */
  env?: Record<string, string> | string[];
  /** Working directory; default: the image's. */
  workdir?: string;
  /** NAME|UID[:GROUP|GID]; default: the image's. */
  user?: string;
  /** The whole process group is killed after so many milliseconds; 0: never. */
  timeoutMs?: number;
  /** Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on. */
  limits?: string[];
  /** What the program reads from its standard input. */
  stdin?: Uint8Array | string;
  /** How many bytes are kept of each stream; the program runs on and the rest is dropped. Default: 67108864, and more than that ends the program with an error. */
  maxOutput?: number;
}

export interface VMRunResult {
  /** Exit status, 0 to 255; 128 + signal if a signal ended the program. */
  code: number;
  /** The signal that ended the program; 0 if it exited. */
  signal: number;
  /** timeoutMs passed and the program was killed. */
  timedOut: boolean;
  /** A background child still held the output when the program exited; what it wrote later is lost. */
  truncated: boolean;
  /** From the request to the end, in microseconds. */
  durationUs: number;
  /** CPU time in user mode, in microseconds. */
  userUs: number;
  /** CPU time in the guest's kernel, in microseconds. */
  systemUs: number;
  /** Most memory resident at once, in bytes. */
  maxRss: number;
  /** What it wrote, as far as it was kept. */
  stdout: Buffer;
  /** What it wrote to standard error, as far as it was kept. */
  stderr: Buffer;
  /** How much it wrote, what was dropped included. */
  stdoutBytes: number;
  /** How much it wrote to standard error. */
  stderrBytes: number;
  /** stdout is the beginning only: maxOutput was exceeded. */
  stdoutTruncated: boolean;
  /** stderr is the beginning only. */
  stderrTruncated: boolean;
}

/** Starts a program and returns once it runs. Its streams are file descriptors that the caller owns. */
export interface VMExecOptions {
  /** The program and its arguments; required. A program without a slash is looked up in the guest's PATH. */
  args: (string | Uint8Array)[];
  /** NAME=value, over the image's environment. */
  env?: Record<string, string> | string[];
  /** Working directory; default: the image's. */
  workdir?: string;
  /** NAME|UID[:GROUP|GID]; default: the image's. */
  user?: string;
  /** The whole process group is killed after so many milliseconds; 0: never. */
  timeoutMs?: number;
  /** Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on. */
  limits?: string[];
  /** Give a stream for standard input; else it is empty. */
  stdin?: boolean;
  /** Give a stream for standard output; else it is dropped. */
  stdout?: boolean;
  /** Give a stream for standard error; else it is dropped. */
  stderr?: boolean;
  /** Run it on a terminal: stdout has all its output. */
  tty?: boolean;
  /** Size of the terminal; default 24. */
  rows?: number;
  /** Size of the terminal; default 80. */
  cols?: number;
}

export interface VMExecResult {
  /** Its number in the guest, for vm_attach. */
  id: number;
  /** Its process ID in the guest. */
  pid: number;
}

/** Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped. */
export interface VMStartWorkloadOptions {
  /** The program and its arguments; required. A program without a slash is looked up in the guest's PATH. */
  args: (string | Uint8Array)[];
  /** NAME=value, over the image's environment. */
  env?: Record<string, string> | string[];
  /** Working directory; default: the image's. */
  workdir?: string;
  /** NAME|UID[:GROUP|GID]; default: the image's. */
  user?: string;
  /** The whole process group is killed after so many milliseconds; 0: never. */
  timeoutMs?: number;
  /** Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on. */
  limits?: string[];
}

export type VMFollowResult = VMExecResult;

export interface ExecWaitResult {
  /** Exit status, 0 to 255; 128 + signal if a signal ended the program. */
  code: number;
  /** The signal that ended the program; 0 if it exited. */
  signal: number;
  /** timeoutMs passed and the program was killed. */
  timedOut: boolean;
  /** A background child still held the output when the program exited; what it wrote later is lost. */
  truncated: boolean;
  /** From the request to the end, in microseconds. */
  durationUs: number;
  /** CPU time in user mode, in microseconds. */
  userUs: number;
  /** CPU time in the guest's kernel, in microseconds. */
  systemUs: number;
  /** Most memory resident at once, in bytes. */
  maxRss: number;
}

/** Sends a signal to the program's process group. It does nothing after the program's end. */
export interface ExecSignalOptions {
  /** Its name, such as TERM or SIGTERM; required. */
  signal: string;
}

/** Changes the size of the program's terminal. Without a terminal it does nothing. */
export interface ExecResizeOptions {
  /** Lines. */
  rows?: number;
  /** Columns. */
  cols?: number;
}

/** Reads a file of the guest. */
export interface VMReadFileOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Where to begin, in bytes; default 0. Past the end there is nothing to read. */
  offset?: number;
  /** How many bytes to read at most; default: to the end. */
  length?: number;
  /** A larger file is an error; default and most: 67108864. vm_open_file reads files of any size. */
  maxBytes?: number;
}

export interface VMReadFileResult {
  /** What is in it. */
  data: Buffer;
}

/** Creates or replaces a file of the guest. It appears under its name only when all of it is written. */
export interface VMWriteFileOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Permission bits; default 0644. */
  mode?: number;
  /** NAME|UID[:GROUP|GID] of the image's accounts; default: root. */
  owner?: string;
  /** Add to the end of the file, which is made if there is none. This is not atomic. */
  append?: boolean;
  /** Write over the contents of an existing file, from offset on, whose mode and owner stay. This is not atomic. */
  inPlace?: boolean;
  /** With inPlace: where to begin, in bytes; default 0. */
  offset?: number;
  /** What shall be in it. */
  data?: Uint8Array | string;
}

/** Reads a file of the guest as a stream. After its end file_wait tells whether all of the file was read. */
export interface VMOpenFileOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Where to begin, in bytes; default 0. Past the end there is nothing to read. */
  offset?: number;
  /** How many bytes to read at most; default: to the end. */
  length?: number;
}

/** Creates or replaces a file of the guest with what is written to a stream. Shut the stream's writing side down or close it, then call file_wait: only then the file appears under its name. file_close before that leaves the old file. */
export interface VMCreateFileOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Permission bits; default 0644. */
  mode?: number;
  /** NAME|UID[:GROUP|GID] of the image's accounts; default: root. */
  owner?: string;
  /** Add to the end of the file, which is made if there is none. This is not atomic. */
  append?: boolean;
  /** Write over the contents of an existing file, from offset on, whose mode and owner stay. This is not atomic. */
  inPlace?: boolean;
  /** With inPlace: where to begin, in bytes; default 0. */
  offset?: number;
}

/** Opens a byte stream to a TCP port on the guest's loopback address. */
export interface VMConnectOptions {
  /** 1 to 65535; default: the workload's, as the bake or the image says, or else the one on which a program has listened longest. */
  port?: number;
}

export interface VMSocketPathResult {
  /** Absolute. */
  path: string;
}

/** Listens on the host and connects everything that arrives to the guest's TCP port, until the handle or the VM is closed. */
export interface VMForwardOptions {
  /** Where to listen: HOST:PORT, where port 0 takes a free one, or the path of a Unix socket; default 127.0.0.1:0. */
  address?: string;
  /** The guest's, 1 to 65535; default: as vm_connect. */
  port?: number;
}

export interface VMForwardResult {
  /** Where it listens. */
  address: string;
}

/** Has the guest listen on a TCP port of its loopback address and connects everything that arrives to a server of the host, until the handle or the VM is closed. Copies of the VM do not have it. */
export interface VMForwardToHostOptions {
  /** The guest's, 1 to 65535; default: any that is free. */
  port?: number;
  /** Of the host's server: HOST:PORT, or the path of a Unix socket; required. */
  address: string;
}

export interface VMForwardToHostResult {
  /** The guest's port. */
  port: number;
}

export interface ForwardStatsResult {
  /** Connections that are open. */
  open: number;
  /** Connections that came. */
  total: number;
  /** Of them, those whose other end could not be reached. */
  failed: number;
  /** Bytes from who connects. */
  sent: number;
  /** Bytes to who connects. */
  received: number;
}

export interface VersionResult {
  /** Of the library, such as v1.2.3. */
  version: string;
  /** Of the ABI, as smAbiVersion. */
  abi: number;
  /** Of the Go toolchain that built it. */
  go: string;
}

export interface Check {
  /** What was looked at. */
  name: string;
  /** ok, warning or failed. */
  status: string;
  /** What was found. */
  detail: string;
  /** What to do about it; may be empty. */
  fix: string;
}

export interface DoctorResult {
  /** VMs can run here. */
  ok: boolean;
  /** A map for each: name, status (ok, warning or failed), detail, fix. */
  checks: Check[];
}

export interface MetricsResult {
  /** The lines. */
  text: string;
}

/** Changes how this process decides whether a VM may start. */
export interface SetAdmissionOptions {
  /** A start waits for memory; else it fails. */
  wait?: boolean;
  /** Memory that VMs leave to the host; default 128. */
  marginMib?: number;
  /** How many VMs are restored at the same time; the others wait. Default: twice the number of CPUs. */
  parallel?: number;
  /** What a restored VM is expected to need for itself; default 16. */
  perVmMib?: number;
}

/** Sends an event for each step of what the library does, until it is canceled. */
export interface TraceOptions {
  /** Of boot, restore, snapshot, bake, exec, vsock, fs, net, pool and oci; default: all. */
  categories?: string[];
}

/** Makes an image that VMs start from: an OCI image is pulled and booted once, its workload brought to readiness and frozen. If the store has that already, nothing is booted. Events: progress of the pull, and the steps of the bake. */
export interface ImageFromOCIOptions {
  /** The image: as for docker, oci:DIRECTORY[:TAG], oci-archive:FILE or docker-archive:FILE; required. */
  ref: string;
  /** missing (default), always or never. */
  pull?: string;
  /** os/arch[/variant]; default: linux on this host's architecture. */
  platform?: string;
  /** Registries, HOST or HOST:PORT, that may use plain HTTP or any certificate. */
  insecure?: string[];
  /** Tells variants of the same image apart; the snapshot is found by it. */
  name?: string;
  /** Instead of the image's. */
  entrypoint?: string[];
  /** Instead of the image's. */
  cmd?: string[];
  /** NAME=value, over the image's. */
  env?: Record<string, string> | string[];
  /** Instead of the image's. */
  user?: string;
  /** Instead of the image's. */
  workdir?: string;
  /** Start no workload: the snapshot is of a guest that is ready to run programs. */
  bootOnly?: boolean;
  /** RAM, 64 to 524288; default 256. */
  memoryMib?: number;
  /** 1 to 8; default 1. */
  vcpus?: number;
  /** Size of the writable layer over the image, 16 to 1048576; default 8192. */
  scratchMib?: number;
  /** The workload's TCP port; default: the first that the image exposes. */
  guestPort?: number;
  /** When the workload is ready: port[:N], settle[:DURATION], command:PROGRAM ARG… or none; default: port if there is one, else settle. */
  ready?: string;
  /** It is ready once this program exits with status 0; instead of ready. */
  readyCommand?: string[];
  /** Programs that run in the ready guest before it is frozen, one after another. */
  warmup?: string[][];
  /** Until the workload is ready, and for each warmup; default 60000. */
  timeoutMs?: number;
}

export interface ImageFromOCIResult {
  /** Identifier. */
  id: string;
  /** Name; may be empty. */
  name: string;
  /** Of what it was baked from; empty for one of a running VM. */
  fingerprint: string;
  /** ID of the snapshot that this one holds the differences to; empty for a whole one. */
  base: string;
  /** In milliseconds since 1970. */
  createdMs: number;
  /** In milliseconds since 1970. */
  lastUsedMs: number;
  /** On disk. */
  bytes: number;
  /** The reference that its OCI image was pulled by. */
  ref: string;
  /** Of that image. */
  digest: string;
  /** RAM of its VMs. */
  memoryMib: number;
  /** Virtual CPUs of its VMs. */
  vcpus: number;
  /** Size of their writable layer. */
  scratchMib: number;
  /** The image's command, or another, runs in it. */
  workload: boolean;
  /** Of the workload. */
  command: string[];
  /** The workload's TCP port; 0 if there is none. */
  guestPort: number;
  /** Why it cannot be used; empty if nothing is known against it. */
  problem: string;
}

/** Opens a snapshot of the store, to start VMs from it. */
export interface ImageFromSnapshotOptions {
  /** ID, an unambiguous beginning of it, or name (of several the newest); required. */
  name: string;
  /** When checksums are compared: once for each file (default), always or never. */
  verify?: string;
}

export type ImageFromSnapshotResult = ImageFromOCIResult;

export interface ImageInfoResult {
  /** Identifier. */
  id: string;
  /** Name; may be empty. */
  name: string;
  /** Of what it was baked from; empty for one of a running VM. */
  fingerprint: string;
  /** ID of the snapshot that this one holds the differences to; empty for a whole one. */
  base: string;
  /** In milliseconds since 1970. */
  createdMs: number;
  /** In milliseconds since 1970. */
  lastUsedMs: number;
  /** On disk. */
  bytes: number;
  /** The reference that its OCI image was pulled by. */
  ref: string;
  /** Of that image. */
  digest: string;
  /** RAM of its VMs. */
  memoryMib: number;
  /** Virtual CPUs of its VMs. */
  vcpus: number;
  /** Size of their writable layer. */
  scratchMib: number;
  /** The image's command, or another, runs in it. */
  workload: boolean;
  /** Of the workload. */
  command: string[];
  /** The workload's TCP port; 0 if there is none. */
  guestPort: number;
  /** Why it cannot be used; empty if nothing is known against it. */
  problem: string;
}

export interface ImageAcquireResult {
  /** Its random identifier, 12 hexadecimal digits. */
  id: string;
  /** Its name, which is also the guest's host name. */
  name: string;
  /** The random identifier that the guest was given when it was restored; empty for one that was booted. */
  restoreId: string;
}

export interface ImagePoolStatsResult {
  /** As configured. */
  min: number;
  /** As configured. */
  max: number;
  /** VMs there are: idle, in use and being reset. */
  alive: number;
  /** Ready. */
  idle: number;
  /** Acquired. */
  inUse: number;
  /** Released, not yet reset. */
  resetting: number;
  /** Being started. */
  starting: number;
  /** Not yet closed. */
  closing: number;
  /** Callers that wait for a VM. */
  waiting: number;
  /** VMs started so far. */
  starts: number;
  /** Starts that failed. */
  startFailures: number;
  /** VMs reset in place. */
  resets: number;
  /** Resets that failed, so that the VM was replaced. */
  resetFailures: number;
  /** VMs closed because they were idle for too long. */
  evictions: number;
  /** VMs that ended by themselves. */
  deaths: number;
  /** Successful ones. */
  acquires: number;
  /** How long they took, median, in nanoseconds. */
  acquireP50Ns: number;
  /** 99th percentile. */
  acquireP99Ns: number;
}

/** Makes a pool of an image's VMs and starts filling it in the background. The image must stay open as long. Volumes can only be read, and VMs with a network are replaced after each use. */
export interface PoolNewOptions {
  /** Disks that are kept in files of the host: FILE:/PATH[:ro][:size=8G]. A file is made on first use, of 8 GiB unless size says another, and allocated as it is written. Six volumes and mounts are possible. */
  volumes?: string[];
  /** Directories of the host: DIR:/PATH[:ro][:symlinks=opaque|deny|follow]; opaque unless given. */
  mounts?: string[];
  /** Let the guest reach other computers: the public Internet, unless egress says otherwise. The gateway is the host's 127.0.0.1, if a rule allows that. */
  network?: boolean;
  /** Rules of where it may connect to, with network: allow|deny WHAT[:PORTS][/tcp|udp], where WHAT is an address, a network, a name, *.NAME or *. The first that fits decides. */
  egress?: string[];
  /** allow (the default) or deny, for what no rule is about. The host, private networks and the metadata of clouds are always denied unless a rule allows them by address. */
  egressDefault?: string;
  /** Bytes per second, each way; 0: no limit. */
  networkRate?: number;
  /** How many VMs are kept ready, on top of those in use; default 0. */
  min?: number;
  /** How many VMs there are at most, 1 to 65536; default: the larger of 32 and min. */
  max?: number;
  /** After how long with more than min ready VMs the surplus is closed; 0: never. */
  idleTimeoutMs?: number;
  /** How long pool_acquire waits at most when all VMs are in use; 0: until it is canceled. */
  acquireTimeoutMs?: number;
  /** Close a released VM and start a fresh one; else it is brought back in place, which is faster. */
  replace?: boolean;
}

export type PoolAcquireResult = ImageAcquireResult;

export type PoolStatsResult = ImagePoolStatsResult;

/** Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for vm_attach. */
export interface VMSpawnOptions {
  /** The program and its arguments; required. A program without a slash is looked up in the guest's PATH. */
  args: (string | Uint8Array)[];
  /** NAME=value, over the image's environment. */
  env?: Record<string, string> | string[];
  /** Working directory; default: the image's. */
  workdir?: string;
  /** NAME|UID[:GROUP|GID]; default: the image's. */
  user?: string;
  /** The whole process group is killed after so many milliseconds; 0: never. */
  timeoutMs?: number;
  /** Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on. */
  limits?: string[];
  /** Run it on a terminal. */
  tty?: boolean;
  /** Size of the terminal; default 24. */
  rows?: number;
  /** Size of the terminal; default 80. */
  cols?: number;
  /** Leave its input open for who attaches; else it is empty. */
  stdin?: boolean;
}

export interface VMSpawnResult {
  /** Its number in the guest, for vm_attach; copies of the VM have it too. */
  id: number;
  /** Its process ID in the guest. */
  pid: number;
}

/** Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes. Any number may be attached. Closing the handle ends the attachment alone. Once one has got the exit status the guest forgets the program. */
export interface VMAttachOptions {
  /** The program's number; required. */
  id: number;
  /** Give a stream for its standard input. */
  stdin?: boolean;
  /** Give a stream for its standard output; else that is dropped. */
  stdout?: boolean;
  /** Give a stream for its standard error; else that is dropped. */
  stderr?: boolean;
}

export type VMAttachResult = VMExecResult;

export interface ProgramInfo {
  /** Its number, for vm_attach. */
  id: number;
  /** Its process ID in the guest. */
  pid: number;
  /** The program and its arguments, at most 4096 bytes of them. */
  args: (string | Buffer)[];
  /** The user's number. */
  uid: number;
  /** When it was started, by the guest's clock, in milliseconds since 1970. */
  startedMs: number;
  /** It is the workload. */
  workload: boolean;
  /** It runs by itself: vm_attach attaches to it. */
  detached: boolean;
  /** It runs on a terminal. */
  tty: boolean;
  /** It has ended, and nobody has got its exit status yet. */
  ended: boolean;
}

export interface VMProgramsResult {
  /** One map for each, the oldest first: at most 4096. */
  programs: ProgramInfo[];
  /** There are more. */
  more: boolean;
}

/** A file that a chain writes. */
export interface ChainFile {
  /** In the guest, absolute; required. */
  path: string;
  /** What shall be in it. */
  data?: Uint8Array | string;
  /** Permission bits; default 0644. */
  mode?: number;
  /** NAME|UID[:GROUP|GID]; default: root. */
  owner?: string;
}

/** What to run. */
export interface Program {
  /** The program and its arguments; required. A program without a slash is looked up in the guest's PATH. */
  args: (string | Uint8Array)[];
  /** NAME=value, over the image's environment. */
  env?: Record<string, string> | string[];
  /** Working directory; default: the image's. */
  workdir?: string;
  /** NAME|UID[:GROUP|GID]; default: the image's. */
  user?: string;
  /** The whole process group is killed after so many milliseconds; 0: never. */
  timeoutMs?: number;
  /** Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on. */
  limits?: string[];
}

/** Writes files and runs programs one after another, until one of them fails. */
export interface VMChainOptions {
  /** Files that are written first. */
  files?: ChainFile[];
  /** Programs that run after that, one after another; required. */
  commands: Program[];
  /** A program that fails does not keep the others from running. */
  continueOnError?: boolean;
  /** For all together, in milliseconds; 0: none. */
  timeoutMs?: number;
  /** Of each program, as in vm_run. */
  maxOutput?: number;
}

export interface VMChainResult {
  /** Of the programs, in order, with the keys of vm_run; zeros for one that could not be run. */
  outputs: VMRunResult[];
  /** Which was the first to fail, counted from 0; -1: none. */
  failed: number;
  /** Why a program could not be run; empty if all were. */
  error: string;
}

export interface VMStatsResult {
  /** Since the guest first answered, in milliseconds. */
  timeMs: number;
  /** What the guest has used of the host's CPUs, in microseconds. */
  cpuUs: number;
  /** Accesses of the guest to its memory that the host has had to resolve; 0 where the host does not count them. */
  pageFaults: number;
  /** Memory that the host holds for this VM alone; the rest is shared with others of its snapshot. */
  privateBytes: number;
  /** Requests to read from the image, the writable layer and the volumes. */
  diskReads: number;
  /** Requests to write. */
  diskWrites: number;
  /** Requests to bring what was written to the host's disk. */
  diskFlushes: number;
  /** Bytes read. */
  diskReadBytes: number;
  /** Bytes written. */
  diskWriteBytes: number;
  /** Bytes of frames that the guest sent; 0 without a network. */
  netFromGuestBytes: number;
  /** Bytes of frames that the guest was sent. */
  netToGuestBytes: number;
  /** TCP connections that are open. */
  netConnectionsOpen: number;
  /** TCP connections that the guest began. */
  netConnections: number;
  /** TCP connections and UDP packets that the rules denied. */
  netRefused: number;
  /** Names that the guest asked for. */
  dnsQueries: number;
  /** Of them, those that the rules denied. */
  dnsRefused: number;
  /** CPU time of the workload and all other programs, in microseconds. This and the following are the guest's claims, and 0 while it is paused. */
  guestCpuUs: number;
  /** Programs running. */
  guestExecs: number;
  /** Since the guest's kernel started, also before the snapshot, in milliseconds. */
  guestUptimeMs: number;
  /** Memory that the guest's kernel manages. */
  totalBytes: number;
  /** Used for nothing. */
  freeBytes: number;
  /** What programs could get without swapping. */
  availableBytes: number;
  /** Caches, mostly of files. */
  cacheBytes: number;
  /** Page faults with I/O since boot. */
  majorFaults: number;
  /** Page faults without I/O since boot. */
  minorFaults: number;
}

/** Opens a store of images and snapshots. Any number of processes may use one at once. Handle 0 is the user's own store. */
export interface StoreOpenOptions {
  /** Directory, made if it is missing; default: the user's own. */
  dir?: string;
  /** Directory of the guest's kernel and initramfs; default: where the library finds them. */
  assets?: string;
}

/** Makes an OCI image available. Events: its progress. */
export interface StorePullOptions {
  /** The image: as for docker, oci:DIRECTORY[:TAG], oci-archive:FILE or docker-archive:FILE; required. */
  ref: string;
  /** missing (default), always or never. */
  pull?: string;
  /** os/arch[/variant]; default: linux on this host's architecture. */
  platform?: string;
  /** Registries, HOST or HOST:PORT, that may use plain HTTP or any certificate. */
  insecure?: string[];
}

export interface StorePullResult {
  /** Canonical reference; empty if it has none any more. */
  ref: string;
  /** Of the manifest. */
  digest: string;
  /** What docker calls the image ID. */
  configDigest: string;
  /** os/arch or os/arch/variant. */
  platform: string;
  /** Size of the root file system. */
  bytes: number;
  /** When it was built, as it says, in milliseconds since 1970. */
  createdMs: number;
  /** As the image says. */
  entrypoint: string[];
  /** As the image says. */
  cmd: string[];
  /** As the image says. */
  env: string[];
  /** As the image says. */
  workdir: string;
  /** As the image says. */
  user: string;
  /** The first TCP port that it exposes; 0 if there is none. */
  guestPort: number;
}

export interface StoreImagesResult {
  /** One map for each, with the keys of store_pull. */
  images: StorePullResult[];
}

/** Forgets the reference of an OCI image; its files go when nothing else needs them. */
export interface StoreRemoveImageOptions {
  /** The reference; required. */
  ref: string;
}

export interface StoreSnapshotsResult {
  /** One map for each, with the keys of image_info. */
  snapshots: ImageInfoResult[];
}

/** Describes one snapshot, without reading its data. */
export interface StoreInspectOptions {
  /** ID, an unambiguous beginning of it, or name (of several the newest); required. */
  name: string;
}

export type StoreInspectResult = ImageInfoResult;

/** Deletes a snapshot. VMs that were started from it go on. */
export interface StoreRemoveOptions {
  /** ID, an unambiguous beginning of it, or name (of several the newest); required. */
  name: string;
}

/** Deletes the snapshots that may go and describes them. */
export interface StorePruneOptions {
  /** Those not used for so many milliseconds; 0: none. */
  olderMs?: number;
  /** The least recently used, until the rest takes no more on disk; 0: none. */
  maxBytes?: number;
  /** Those whose image is no longer in the store, and those that cannot be used. */
  unreferenced?: boolean;
  /** All of them. */
  all?: boolean;
}

export type StorePruneResult = StoreSnapshotsResult;

/** Makes a snapshot that holds everything itself from one that holds the differences to others. */
export interface StoreFlattenOptions {
  /** ID, an unambiguous beginning of it, or name (of several the newest); required. */
  name: string;
}

export interface StoreFlattenResult {
  /** Of the new snapshot. */
  id: string;
}

/** Describes a file of the guest. */
export interface VMStatOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** A symbolic link means itself, and not what it points to. */
  noFollow?: boolean;
}

export interface VMStatResult {
  /** As it was asked for, or below the directory that is listed. Check it before you use it as a path on the host: it is the guest's. */
  path: string | Buffer;
  /** file, directory, symlink, fifo, socket, block or char. */
  type: string;
  /** Bytes of a file, or of a link's target. */
  size: number;
  /** Permission bits with set-user-ID, set-group-ID and sticky: 07777. */
  mode: number;
  /** The owner's number. */
  uid: number;
  /** The group's number. */
  gid: number;
  /** When its contents last changed, in milliseconds since 1970. */
  mtimeMs: number;
  /** Of a symbolic link; else empty. */
  target: string | Buffer;
  /** How many names it has. */
  links: number;
  /** Why it could not be examined, or a directory not be read to its end; else empty. */
  error: string;
}

/** Lists a directory of the guest, or all that is below it, however much that is. */
export interface VMListOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** How deep to go: 1, the default, is the directory's own entries; -1 is everything. Links are not followed. */
  depth?: number;
  /** Leave out what is mounted below. */
  oneFileSystem?: boolean;
}

export interface EntriesNextResult {
  /** The next of them, up to 1024, with the keys of vm_stat; none at the end. */
  entries: VMStatResult[];
}

/** Watches a file or a directory of the guest. It returns once changes are seen. */
export interface VMWatchOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** And everything below a directory, also what is made later. */
  recursive?: boolean;
}

export interface FileEvent {
  /** created, modified, removed, renamed, attributes, or overflow: events were lost. */
  op: string;
  /** Below the directory that is watched; . is what is watched itself. */
  path: string | Buffer;
  /** Of renamed: the old path. */
  from: string | Buffer;
  /** It is a directory's. */
  dir: boolean;
}

export interface WatchNextResult {
  /** What has happened since the last call, up to 1024 events; none once what was watched is gone. */
  events: FileEvent[];
}

/** Makes a directory in the guest. */
export interface VMMkdirOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Permission bits, up to 07777; default 0755. */
  mode?: number;
  /** And the directories that it is in, with mode 0755; one that exists is no error. */
  parents?: boolean;
  /** NAME|UID[:GROUP|GID] of the image's accounts, of all that are made; default: root. */
  owner?: string;
}

/** Removes a file, a link or an empty directory of the guest. */
export interface VMRemoveOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** And everything in a directory. Links are not followed. */
  recursive?: boolean;
}

/** Gives a file or a directory of the guest another name. */
export interface VMRenameOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** The new path, in the same file system; required. What has it is replaced. */
  to: string;
  /** Replace nothing: what has the new name is an error. */
  noReplace?: boolean;
}

/** Sets the permissions of a file of the guest. */
export interface VMChmodOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Permission bits, up to 07777; required. */
  mode: number;
  /** And of everything below. Links are left alone. */
  recursive?: boolean;
}

/** Sets the owner of a file of the guest. */
export interface VMChownOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** NAME|UID[:GROUP|GID] of the image's accounts, or :GROUP alone, where what is not given stays; required. */
  owner: string;
  /** And of everything below; links get the owner themselves. */
  recursive?: boolean;
  /** A symbolic link means itself, and not what it points to. */
  noFollow?: boolean;
}

/** Makes a symbolic link in the guest. */
export interface VMSymlinkOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** What it points to; required. */
  target: string;
}

/** Reads a file or a tree of the guest as a tar archive, a stream. After its end file_wait tells whether all of it was read. Unpack it as an archive that may be hostile. */
export interface VMPackOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Leave out what is mounted below. */
  oneFileSystem?: boolean;
}

/** Unpacks a tar archive that is written to a stream into a directory of the guest, and never outside of it. Shut the stream's writing side down or close it, then call file_wait, which tells how it went. */
export interface VMUnpackOptions {
  /** In the guest, absolute; required. */
  path: string;
  /** Keep owners, by number. */
  owners?: boolean;
  /** Else files belong to NAME|UID[:GROUP|GID] of the image's accounts; default: root. */
  owner?: string;
  /** Keep set-user-ID and set-group-ID bits. */
  setuid?: boolean;
  /** Make devices and FIFOs; else they are an error. */
  special?: boolean;
  /** Leave devices and FIFOs out. */
  skipSpecial?: boolean;
}

/** Copies a file or a tree of the host into the guest, as cp -a does. An error leaves a part of the copy. */
export interface VMCopyInOptions {
  /** What to copy; required. With /. at its end it means what is in the directory. */
  source: string;
  /** Where to: into it if it is a directory, else under that name; required. */
  target: string;
  /** Keep owners, by number. */
  owners?: boolean;
  /** Else files belong to NAME|UID[:GROUP|GID] of the image's accounts; default: root. */
  owner?: string;
  /** Keep set-user-ID and set-group-ID bits. */
  setuid?: boolean;
  /** Make devices and FIFOs; else they are an error. */
  special?: boolean;
  /** Leave devices and FIFOs out. */
  skipSpecial?: boolean;
}

/** Copies a file or a tree of the guest to the host. Whatever is in the guest, nothing outside of the copy is written. An error leaves a part of the copy. */
export interface VMCopyOutOptions {
  /** What to copy; required. With /. at its end it means what is in the directory. */
  source: string;
  /** Where to: into it if it is a directory, else under that name; required. */
  target: string;
  /** Keep owners, by number, which takes root; else files belong to the caller. */
  owners?: boolean;
  /** Keep set-user-ID and set-group-ID bits. */
  setuid?: boolean;
  /** Leave devices and FIFOs out; else they are an error. */
  skipSpecial?: boolean;
  /** Leave out what is mounted in the tree. */
  oneFileSystem?: boolean;
  /** More than that in all files together is an error; default: no limit. */
  maxBytes?: number;
  /** More files and directories than that are an error; default: no limit. */
  maxEntries?: number;
}

/** Starts a VM that goes on from an image's snapshot, with entropy, clock and host name of its own. It returns when the workload runs. */
export interface VMStartOptions {
  /** Disks that are kept in files of the host: FILE:/PATH[:ro][:size=8G]. A file is made on first use, of 8 GiB unless size says another, and allocated as it is written. Six volumes and mounts are possible. */
  volumes?: string[];
  /** Directories of the host: DIR:/PATH[:ro][:symlinks=opaque|deny|follow]; opaque unless given. */
  mounts?: string[];
  /** Let the guest reach other computers: the public Internet, unless egress says otherwise. The gateway is the host's 127.0.0.1, if a rule allows that. */
  network?: boolean;
  /** Rules of where it may connect to, with network: allow|deny WHAT[:PORTS][/tcp|udp], where WHAT is an address, a network, a name, *.NAME or *. The first that fits decides. */
  egress?: string[];
  /** allow (the default) or deny, for what no rule is about. The host, private networks and the metadata of clouds are always denied unless a rule allows them by address. */
  egressDefault?: string;
  /** Bytes per second, each way; 0: no limit. */
  networkRate?: number;
  /** The VM is ended by force so many milliseconds after its start; 0: never. */
  lifetimeMs?: number;
  /** How much of the host's CPUs the guest may use on average, 100 for one; 0: as many as it has vCPUs. */
  cpuPercent?: number;
  /** Directory of a threaded cgroup (v2), below this process's, that the guest's processors are put into, for its cpu.weight; default: none. */
  cgroup?: string;
  /** Bytes per second that each disk reads and writes; 0: no limit. */
  diskRate?: number;
  /** Requests per second to each disk; 0: no limit. */
  diskOps?: number;
  /** The VM is paused when it was not used for so many milliseconds: no program that was started, no file that is transferred and no connection. The next use wakes it up. 0: never. */
  idleTimeoutMs?: number;
  /** The VM's name and host name, 1 to 63 of [a-zA-Z0-9-]; default: its ID. */
  name?: string;
  /** How long the guest may take until it answers; default 30000. */
  timeoutMs?: number;
}

export type VMStartResult = ImageAcquireResult;

/** Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started; vm_start_workload does. Events: progress of the pull. */
export interface VMBootOptions {
  /** The image: as for docker, oci:DIRECTORY[:TAG], oci-archive:FILE or docker-archive:FILE; required. */
  ref: string;
  /** missing (default), always or never. */
  pull?: string;
  /** os/arch[/variant]; default: linux on this host's architecture. */
  platform?: string;
  /** Registries, HOST or HOST:PORT, that may use plain HTTP or any certificate. */
  insecure?: string[];
  /** Disks that are kept in files of the host: FILE:/PATH[:ro][:size=8G]. A file is made on first use, of 8 GiB unless size says another, and allocated as it is written. Six volumes and mounts are possible. */
  volumes?: string[];
  /** Directories of the host: DIR:/PATH[:ro][:symlinks=opaque|deny|follow]; opaque unless given. */
  mounts?: string[];
  /** Let the guest reach other computers: the public Internet, unless egress says otherwise. The gateway is the host's 127.0.0.1, if a rule allows that. */
  network?: boolean;
  /** Rules of where it may connect to, with network: allow|deny WHAT[:PORTS][/tcp|udp], where WHAT is an address, a network, a name, *.NAME or *. The first that fits decides. */
  egress?: string[];
  /** allow (the default) or deny, for what no rule is about. The host, private networks and the metadata of clouds are always denied unless a rule allows them by address. */
  egressDefault?: string;
  /** Bytes per second, each way; 0: no limit. */
  networkRate?: number;
  /** The VM is ended by force so many milliseconds after its start; 0: never. */
  lifetimeMs?: number;
  /** How much of the host's CPUs the guest may use on average, 100 for one; 0: as many as it has vCPUs. */
  cpuPercent?: number;
  /** Directory of a threaded cgroup (v2), below this process's, that the guest's processors are put into, for its cpu.weight; default: none. */
  cgroup?: string;
  /** Bytes per second that each disk reads and writes; 0: no limit. */
  diskRate?: number;
  /** Requests per second to each disk; 0: no limit. */
  diskOps?: number;
  /** The VM is paused when it was not used for so many milliseconds: no program that was started, no file that is transferred and no connection. The next use wakes it up. 0: never. */
  idleTimeoutMs?: number;
  /** The VM's name and host name, 1 to 63 of [a-zA-Z0-9-]; default: its ID. */
  name?: string;
  /** RAM, 64 to 524288; default 256. */
  memoryMib?: number;
  /** 1 to 8; default 1. */
  vcpus?: number;
  /** Size of the writable layer over the image, 16 to 1048576; default 8192. It is allocated as it is written. */
  scratchMib?: number;
  /** How long the guest may take until it answers; default 60000. */
  timeoutMs?: number;
}

export type VMBootResult = ImageAcquireResult;

export interface VMInfoResult {
  /** Random identifier, 12 hexadecimal digits. */
  id: string;
  /** Name, which is also the guest's host name. */
  name: string;
  /** The random identifier that the guest was given when it was restored; empty for one that was booted. */
  restoreId: string;
  /** The reference that its OCI image was pulled by. */
  ref: string;
  /** Of the image. */
  digest: string;
  /** RAM. */
  memoryMib: number;
  /** Virtual CPUs. */
  vcpus: number;
  /** Size of the writable layer. */
  scratchMib: number;
  /** The workload's TCP port; 0 if none is known. */
  guestPort: number;
  /** When the guest first answered, in milliseconds since 1970. */
  startedMs: number;
  /** It has not ended. */
  running: boolean;
  /** Why it has ended, as vm_wait says; empty while it runs. */
  endReason: string;
  /** More of that. */
  endDetail: string;
  /** It is paused because nobody has used it for its idle timeout. */
  asleep: boolean;
  /** Memory that the guest says it has given up. */
  balloonBytes: number;
}

/** Asks the guest to give up memory, which the host gets back. The guest complies as far as it can, without haste. */
export interface VMSetBalloonOptions {
  /** How much; 0 returns all of it. */
  bytes?: number;
}

export interface VMWaitResult {
  /** stopped, powered off, rebooted, kernel panic, crashed, host failure or expired. */
  reason: string;
  /** The kernel's message, or the host's error; else empty. */
  detail: string;
}

/** Asks the guest to shut down, and stops it by force if it does not. The handle stays open. */
export interface VMStopOptions {
  /** How long the workload may take after its stop signal, in milliseconds; default 10000. */
  graceMs?: number;
}

export type VMStopResult = VMWaitResult;

/** Makes VMs that go on from this instant, each with an identity of its own, while this VM goes on too. */
export interface VMForkOptions {
  /** How many children, 1 to 1024; default 1. */
  n?: number;
  /** Names and host names of the children, in order; default: their IDs. */
  names?: string[];
  /** How long each may take until it answers; default 30000. */
  timeoutMs?: number;
}

export interface VMForkResult {
  /** Their identifiers. */
  ids: string[];
  /** Their names. */
  names: string[];
  /** The random identifiers that they were given. */
  restoreIds: string[];
}

/** Saves the running VM as an image that others can be started from. The VM runs on. */
export interface VMSnapshotOptions {
  /** Handle of the store to save it in; default: the user's own. */
  store?: Store;
  /** For people; may be empty. */
  name?: string;
  /** Handle of an image that the VM goes back to: only what differs from it is stored. 0 stores everything. */
  base?: Image;
  /** Spend some tenths of a second on making the snapshot small. */
  lean?: boolean;
}

export type VMSnapshotResult = ImageFromOCIResult;

/** Returns the last that the guest's kernel and init wrote to the console. */
export interface VMConsoleOptions {
  /** At most so many bytes, of whole lines; default 65536. */
  maxBytes?: number;
}

export type VMConsoleResult = MetricsResult;

/** A class for each error code. */
export namespace errors {
  /** internal: a bug of ours; please report it. */
  class InternalError extends SupermachineError {}
  /** invalid_argument: a value is out of range or malformed. */
  class InvalidArgumentError extends SupermachineError {}
  /** canceled: the caller canceled. */
  class CanceledError extends SupermachineError {}
  /** timeout: a deadline passed. */
  class TimeoutError extends SupermachineError {}
  /** no_virtualization: no /dev/kvm, no permission, or no hardware support. */
  class NoVirtualizationError extends SupermachineError {}
  /** assets: the guest's kernel or initramfs is missing or corrupt. */
  class AssetsError extends SupermachineError {}
  /** image_not_found: the registry, file or store has no such image. */
  class ImageNotFoundError extends SupermachineError {}
  /** unauthorized: the registry refused the credentials. */
  class UnauthorizedError extends SupermachineError {}
  /** unreachable: the registry is down, refuses or answers too slowly. */
  class UnreachableError extends SupermachineError {}
  /** corrupt: bytes do not match their digest, or are truncated. */
  class CorruptError extends SupermachineError {}
  /** invalid_image: the image breaks the format's rules. */
  class InvalidImageError extends SupermachineError {}
  /** platform: the image has no variant for the wanted platform. */
  class PlatformError extends SupermachineError {}
  /** limit: a limit on size, entries or depth is exceeded. */
  class LimitError extends SupermachineError {}
  /** disk_full: no space left on the host. */
  class DiskFullError extends SupermachineError {}
  /** boot: the guest did not come up. */
  class BootError extends SupermachineError {}
  /** vm_ended: the VM has stopped, or stopped meanwhile. */
  class VMEndedError extends SupermachineError {}
  /** command_not_found: the guest has no such program. */
  class CommandNotFoundError extends SupermachineError {}
  /** not_executable: the program exists and cannot be executed. */
  class NotExecutableError extends SupermachineError {}
  /** not_found: no such file, directory, user, snapshot or VM. */
  class NotFoundError extends SupermachineError {}
  /** refused: nothing listens on the guest's port. */
  class RefusedError extends SupermachineError {}
  /** agent: the agent in the guest broke the protocol. */
  class AgentError extends SupermachineError {}
  /** permission: the guest's kernel refuses the operation. */
  class PermissionError extends SupermachineError {}
  /** io: the host's operating system refused an operation. */
  class IOError extends SupermachineError {}
  /** not_ready: the workload did not become ready. */
  class NotReadyError extends SupermachineError {}
  /** incompatible: a snapshot of another version, architecture or CPU. */
  class IncompatibleError extends SupermachineError {}
  /** in_use: something else needs the object. */
  class InUseError extends SupermachineError {}
  /** no_memory: the host has no memory left for the VM. */
  class NoMemoryError extends SupermachineError {}
  /** exhausted: the pool has no VM to give. */
  class ExhaustedError extends SupermachineError {}
  /** closed: the pool or the image is closed. */
  class ClosedError extends SupermachineError {}
  /** invalid_handle: closed, of another kind, or none at all. */
  class InvalidHandleError extends SupermachineError {}
  /** forked: the process was forked after the library was loaded. */
  class ForkedError extends SupermachineError {}
  /** exists: a file, directory or link exists already. */
  class ExistsError extends SupermachineError {}
  /** not_empty: the directory is not empty. */
  class NotEmptyError extends SupermachineError {}
  /** unsafe: a copy from the guest would have reached out of its place, or has a device. */
  class UnsafeError extends SupermachineError {}
}
