/*
 * libsupermachine: run any OCI image as a hardware-isolated microVM, inside this process.
 *
 * CALLS. Almost every function has one shape:
 *
 *     int32_t sm_NOUN_VERB(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);
 *
 * handle    what the call is about, as each function says; 0 where it says so.
 * options   a msgpack map of len bytes; NULL and 0 for none. An option that is not listed in docs/abi.md is an error. The bytes are read
 *           before the call returns and stay the caller's.
 * result    receives a msgpack map, which the caller frees with sm_bytes_free; NULL if it is of no interest. After an error it is a map with
 *           code, name, message, op and object.
 * async     NULL: the call returns when it is done. Otherwise it returns at once, and its result comes out of a completion queue.
 * returns   SM_OK or one of sm_error. With async, SM_OK says that the call has begun.
 *
 * docs/abi.md lists the options and results of each.
 *
 * HANDLES are numbers, not pointers. One that is closed, of another kind, of another process or made up gives SM_ERR_INVALID_HANDLE. Close each
 * once. Closing a VM ends the programs in it, but their handles stay until they are closed; closing a store or an image leaves what was made
 * from it alone.
 *
 * FILE DESCRIPTORS in results are the caller's: connected Unix sockets, blocking and close-on-exec. Read and write them, shut them down, poll
 * them, close them. Writing to one whose other side is gone raises SIGPIPE, as with any socket: send() with MSG_NOSIGNAL does not.
 *
 * THREADS. Every function may be called from any thread, at any time, several at once on one handle too; not from a signal handler.
 *
 * SIGNALS. The library leaves SIGPIPE, SIGINT, SIGTERM, SIGHUP and SIGQUIT as they were when it was loaded, and its threads take no signals
 * but those of faults, SIGURG, SIGPROF and SIGCHLD. Go's runtime, which is inside, needs its handlers of SIGSEGV, SIGBUS, SIGFPE and SIGURG. A
 * handler of SIGCHLD or SIGPROF that is installed after the library was loaded must have SA_ONSTACK: else it may run on a stack of a few KiB.
 * sm_signals_check sees to it.
 *
 * FORK. In a child that was forked from a process that has loaded the library, and has not executed a program since, every function returns
 * SM_ERR_FORKED. VMs stay the parent's.
 *
 * VMs end with the process. The library cannot be unloaded. It does not work with musl.
 */
#ifndef SUPERMACHINE_H
#define SUPERMACHINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SM_API __attribute__((visibility("default")))

/* The version of the ABI that this header describes. The library's own, from sm_abi_version, may be higher, never lower. */
#define SM_ABI_VERSION 1

/* The kinds of errors. Numbers never change. */
typedef enum sm_error {
	SM_OK = 0,
	SM_ERR_INTERNAL = 1,           /* a bug of ours; please report it */
	SM_ERR_INVALID_ARGUMENT = 2,   /* a value is out of range or malformed */
	SM_ERR_CANCELED = 3,           /* the caller canceled */
	SM_ERR_TIMEOUT = 4,            /* a deadline passed */
	SM_ERR_NO_VIRTUALIZATION = 5,  /* no /dev/kvm, no permission, or no hardware support */
	SM_ERR_ASSETS = 6,             /* the guest's kernel or initramfs is missing or corrupt */
	SM_ERR_IMAGE_NOT_FOUND = 7,    /* the registry, file or store has no such image */
	SM_ERR_UNAUTHORIZED = 8,       /* the registry refused the credentials */
	SM_ERR_UNREACHABLE = 9,        /* the registry is down, refuses or answers too slowly */
	SM_ERR_CORRUPT = 10,           /* bytes do not match their digest, or are truncated */
	SM_ERR_INVALID_IMAGE = 11,     /* the image breaks the format's rules */
	SM_ERR_PLATFORM = 12,          /* the image has no variant for the wanted platform */
	SM_ERR_LIMIT = 13,             /* a limit on size, entries or depth is exceeded */
	SM_ERR_DISK_FULL = 14,         /* no space left on the host */
	SM_ERR_BOOT = 15,              /* the guest did not come up */
	SM_ERR_VM_ENDED = 16,          /* the VM has stopped, or stopped meanwhile */
	SM_ERR_COMMAND_NOT_FOUND = 17, /* the guest has no such program */
	SM_ERR_NOT_EXECUTABLE = 18,    /* the program exists and cannot be executed */
	SM_ERR_NOT_FOUND = 19,         /* no such file, directory, user, snapshot or VM */
	SM_ERR_REFUSED = 20,           /* nothing listens on the guest's port */
	SM_ERR_AGENT = 21,             /* the agent in the guest broke the protocol */
	SM_ERR_PERMISSION = 22,        /* the guest's kernel refuses the operation */
	SM_ERR_IO = 23,                /* the host's operating system refused an operation */
	SM_ERR_NOT_READY = 24,         /* the workload did not become ready */
	SM_ERR_INCOMPATIBLE = 25,      /* a snapshot of another version, architecture or CPU */
	SM_ERR_IN_USE = 26,            /* something else needs the object */
	SM_ERR_NO_MEMORY = 27,         /* the host has no memory left for the VM */
	SM_ERR_EXHAUSTED = 28,         /* the pool has no VM to give */
	SM_ERR_CLOSED = 29,            /* the pool or the image is closed */
	SM_ERR_INVALID_HANDLE = 30,    /* closed, of another kind, or none at all */
	SM_ERR_FORKED = 31,            /* the process was forked after the library was loaded */
	SM_ERR_EXISTS = 32,            /* a file, directory or link exists already */
	SM_ERR_NOT_EMPTY = 33,         /* the directory is not empty */
	SM_ERR_UNSAFE = 34             /* a copy from the guest would have reached out of its place, or has a device */
} sm_error;

/* Bytes that the library gives to the caller. */
typedef struct sm_bytes {
	const void *data;
	size_t len;
} sm_bytes;

/* How a call is made that does not wait. */
typedef struct sm_async {
	uint64_t queue; /* where its result, and its events before that, come out */
	uint64_t tag;   /* comes out with them; the caller's choice */
	uint64_t *call; /* if not NULL, receives a handle for sm_call_cancel, before the call returns */
} sm_async;

/* The kinds of completions. */
enum {
	SM_COMPLETION_NONE = 0,   /* the queue is empty */
	SM_COMPLETION_RESULT = 1, /* a call has ended; there is exactly one for each */
	SM_COMPLETION_EVENT = 2   /* a call tells of its progress */
};

/* What comes out of a queue. */
typedef struct sm_completion {
	uint64_t tag;
	uint64_t call;
	int32_t kind;
	int32_t code;     /* of a result: SM_OK or one of sm_error */
	sm_bytes payload; /* msgpack: the result, the error or the event; the caller frees it with sm_bytes_free */
} sm_completion;

/* Returns the version of the library's ABI. Never blocks; works after fork too. */
SM_API int32_t sm_abi_version(void);

/* Frees bytes that the library gave, and makes them empty. NULL and empty bytes are allowed. Never blocks; works after fork too. */
SM_API void sm_bytes_free(sm_bytes *bytes);

/* Opens a completion queue. *fd is readable while something is in it: poll it, do not read or close it. SM_ERR_IO if there are no more file
 * descriptors. */
SM_API int32_t sm_queue_open(uint64_t *queue, int *fd);

/* Takes the oldest item; its kind is SM_COMPLETION_NONE if there is none. Never blocks. More than 4096 events that wait are dropped, results
 * never are. */
SM_API int32_t sm_queue_next(uint64_t queue, sm_completion *completion);

/* Closes a queue and its file descriptor, and cancels its calls. What they still make, handles and file descriptors, is released, as is
 * what results hold that were not taken. */
SM_API int32_t sm_queue_close(uint64_t queue);

/* Has a call end soon, with SM_ERR_CANCELED unless it has succeeded by then; its result comes out of its queue either way. A call that has
 * ended is left alone. */
SM_API int32_t sm_call_cancel(uint64_t call);

/* Cancels a call of which nothing is wanted any more: what it has made or still makes is released, and nothing of it comes out of its queue. A
 * result that was taken from the queue before is the caller's. */
SM_API int32_t sm_call_abandon(uint64_t call);

/* Looks at the program's handlers of the signals that the library's threads take, and gives SA_ONSTACK to those that lack it. Call it after
 * installing such a handler, or after code that may have. Returns how many it has changed. Any thread may call it, at any time. */
SM_API int32_t sm_signals_check(void);

/* The calls, from the table in capi/api. */

/* Runs a program to its end and collects its output. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_run(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Starts a program and returns once it runs. Its streams are file descriptors that the caller owns. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_exec(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped. Handle: vm. Blocks until it is
 * done. */
SM_API int32_t sm_vm_start_workload(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing the handle ends the
 * following alone. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_follow(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Waits until the program has ended. What it wrote can still be read from its streams. Handle: exec. Blocks until it is done. */
SM_API int32_t sm_exec_wait(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Sends a signal to the program's process group. It does nothing after the program's end. Handle: exec. */
SM_API int32_t sm_exec_signal(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Changes the size of the program's terminal. Without a terminal it does nothing. Handle: exec. */
SM_API int32_t sm_exec_resize(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Kills the program if it still runs, and gives up its handle. Its streams stay the caller's to close. Handle: exec. Blocks until it is
 * done. */
SM_API int32_t sm_exec_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Reads a file of the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_read_file(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Creates or replaces a file of the guest. It appears under its name only when all of it is written. Handle: vm. Blocks until it is
 * done. */
SM_API int32_t sm_vm_write_file(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Reads a file of the guest as a stream. After its end file_wait tells whether all of the file was read. Handle: vm. Blocks until it is
 * done. */
SM_API int32_t sm_vm_open_file(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Creates or replaces a file of the guest with what is written to a stream. Shut the stream's writing side down or close it, then call
 * file_wait: only then the file appears under its name. file_close before that leaves the old file. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_create_file(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Waits for the end of a transfer and tells how it went. Handle: file. Blocks until it is done. */
SM_API int32_t sm_file_wait(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Ends a transfer that still runs, and gives up its handle. The stream stays the caller's to close. Handle: file. Blocks until it is
 * done. */
SM_API int32_t sm_file_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Opens a byte stream to a TCP port on the guest's loopback address. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_connect(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Returns the path of a Unix socket that leads to the workload's port, for other processes of the same user. It is in a directory that
 * nobody else may enter, and goes with the VM. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_socket_path(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Listens on the host and connects everything that arrives to the guest's TCP port, until the handle or the VM is closed. Handle: vm.
 * Blocks until it is done. */
SM_API int32_t sm_vm_forward(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Has the guest listen on a TCP port of its loopback address and connects everything that arrives to a server of the host, until the
 * handle or the VM is closed. Copies of the VM do not have it. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_forward_to_host(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Says what a forward has done so far. Handle: forward. */
SM_API int32_t sm_forward_stats(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Stops listening. Connections that are open stay open. Handle: forward. Blocks until it is done. */
SM_API int32_t sm_forward_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Says which library this is. Handle: no handle (0). */
SM_API int32_t sm_version(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Looks at everything that this host needs to run VMs, and changes nothing. Handle: no handle (0). Blocks until it is done. */
SM_API int32_t sm_doctor(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Returns what this process has done so far and has open, as text in Prometheus' format. Handle: no handle (0). */
SM_API int32_t sm_metrics(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Changes how this process decides whether a VM may start. Handle: no handle (0). */
SM_API int32_t sm_set_admission(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Sends an event for each step of what the library does, until it is canceled. Handle: no handle (0). Blocks until it is done. */
SM_API int32_t sm_trace(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes an image that VMs start from: an OCI image is pulled and booted once, its workload brought to readiness and frozen. If the store
 * has that already, nothing is booted. Events: progress of the pull, and the steps of the bake. Handle: store, or 0 for the user's own.
 * Blocks until it is done. */
SM_API int32_t sm_image_from_oci(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Opens a snapshot of the store, to start VMs from it. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_image_from_snapshot(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Describes an image. Handle: image. */
SM_API int32_t sm_image_info(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Takes a VM from the image's own pool, which keeps one ready. vm_close gives it back. Handle: image. */
SM_API int32_t sm_image_acquire(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Says what the image's own pool has and has done. Handle: image. */
SM_API int32_t sm_image_pool_stats(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Gives up an image, and the VMs that its own pool keeps ready. Other VMs go on. Handle: image. Blocks until it is done. */
SM_API int32_t sm_image_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes a pool of an image's VMs and starts filling it in the background. The image must stay open as long. Volumes can only be read,
 * and VMs with a network are replaced after each use. Handle: image. */
SM_API int32_t sm_pool_new(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Takes a VM, in microseconds if one is ready; else it waits for one, first come, first served. vm_close gives it back. Handle: pool. */
SM_API int32_t sm_pool_acquire(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Says what a pool has and has done. Handle: pool. */
SM_API int32_t sm_pool_stats(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Closes the VMs that are not in use, and gives up the pool. Those in use are closed when they are. Handle: pool. Blocks until it is
 * done. */
SM_API int32_t sm_pool_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for vm_attach. Handle:
 * vm. Blocks until it is done. */
SM_API int32_t sm_vm_spawn(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes. Any number may be
 * attached. Closing the handle ends the attachment alone. Once one has got the exit status the guest forgets the program. Handle: vm.
 * Blocks until it is done. */
SM_API int32_t sm_vm_attach(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Has a program run on by itself: its streams and exec_wait end, and vm_attach attaches to it. Of an attachment it ends that alone.
 * Handle: exec. Blocks until it is done. */
SM_API int32_t sm_exec_detach(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Lists the programs that run in the VM, and those that run by themselves, have ended, and whose exit status nobody has got. Handle: vm.
 * Blocks until it is done. */
SM_API int32_t sm_vm_programs(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Writes files and runs programs one after another, until one of them fails. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_chain(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Measures what a VM uses and has used, and asks its guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_stats(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Opens a store of images and snapshots. Any number of processes may use one at once. Handle 0 is the user's own store. Handle: no
 * handle (0). Blocks until it is done. */
SM_API int32_t sm_store_open(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Gives up a store's handle. Images and VMs from it go on. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes an OCI image available. Events: its progress. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_pull(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Lists the OCI images in the store, one entry for each reference. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_images(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Forgets the reference of an OCI image; its files go when nothing else needs them. Handle: store, or 0 for the user's own. Blocks until
 * it is done. */
SM_API int32_t sm_store_remove_image(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Lists the snapshots in the store, newest first. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_snapshots(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Describes one snapshot, without reading its data. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_inspect(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Deletes a snapshot. VMs that were started from it go on. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_remove(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Deletes the snapshots that may go and describes them. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_store_prune(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes a snapshot that holds everything itself from one that holds the differences to others. Handle: store, or 0 for the user's own.
 * Blocks until it is done. */
SM_API int32_t sm_store_flatten(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Describes a file of the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_stat(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Lists a directory of the guest, or all that is below it, however much that is. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_list(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Returns the next entries of a list. Handle: entries. Blocks until it is done. */
SM_API int32_t sm_entries_next(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Ends a list. Handle: entries. Blocks until it is done. */
SM_API int32_t sm_entries_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Watches a file or a directory of the guest. It returns once changes are seen. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_watch(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Waits for changes and returns them. Handle: watch. Blocks until it is done. */
SM_API int32_t sm_watch_next(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Ends a watch. Handle: watch. Blocks until it is done. */
SM_API int32_t sm_watch_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes a directory in the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_mkdir(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Removes a file, a link or an empty directory of the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_remove(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Gives a file or a directory of the guest another name. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_rename(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Sets the permissions of a file of the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_chmod(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Sets the owner of a file of the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_chown(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes a symbolic link in the guest. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_symlink(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Reads a file or a tree of the guest as a tar archive, a stream. After its end file_wait tells whether all of it was read. Unpack it as
 * an archive that may be hostile. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_pack(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Unpacks a tar archive that is written to a stream into a directory of the guest, and never outside of it. Shut the stream's writing
 * side down or close it, then call file_wait, which tells how it went. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_unpack(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Copies a file or a tree of the host into the guest, as cp -a does. An error leaves a part of the copy. Handle: vm. Blocks until it is
 * done. */
SM_API int32_t sm_vm_copy_in(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Copies a file or a tree of the guest to the host. Whatever is in the guest, nothing outside of the copy is written. An error leaves a
 * part of the copy. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_copy_out(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Starts a VM that goes on from an image's snapshot, with entropy, clock and host name of its own. It returns when the workload runs.
 * Handle: image. Blocks until it is done. */
SM_API int32_t sm_vm_start(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started; vm_start_workload does. Events:
 * progress of the pull. Handle: store, or 0 for the user's own. Blocks until it is done. */
SM_API int32_t sm_vm_boot(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Describes a VM. Handle: vm. */
SM_API int32_t sm_vm_info(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Asks the guest to give up memory, which the host gets back. The guest complies as far as it can, without haste. Handle: vm. */
SM_API int32_t sm_vm_set_balloon(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Waits until the VM has ended and tells how. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_wait(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Asks the guest to shut down, and stops it by force if it does not. The handle stays open. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_stop(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Ends the VM at once, without asking the guest. The handle stays open. Handle: vm. */
SM_API int32_t sm_vm_kill(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Stops the guest's processors and devices. Connections wait. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_pause(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Continues a paused VM. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_resume(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Makes VMs that go on from this instant, each with an identity of its own, while this VM goes on too. Handle: vm. Blocks until it is
 * done. */
SM_API int32_t sm_vm_fork(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Saves the running VM as an image that others can be started from. The VM runs on. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_snapshot(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Reads the console as a stream: what is kept, the last 64 KiB, and then what comes, until the VM ends. A reader that is slow misses
 * some. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_follow_console(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Returns the last that the guest's kernel and init wrote to the console. Handle: vm. */
SM_API int32_t sm_vm_console(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Gives up a VM. One of its own ends at once, by force, unless it has volumes: then it is shut down first, for which it gets 5 seconds.
 * One that was acquired goes back to its pool. Calls that run on it end with an error; programs that were started in it are killed, and
 * their handles stay until they are closed. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_close(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* Like vm_close, but a VM that was acquired is thrown away: the pool starts another. Handle: vm. Blocks until it is done. */
SM_API int32_t sm_vm_discard(const sm_async *async, uint64_t handle, const void *options, size_t len, sm_bytes *result);

/* End of the calls. */

#ifdef __cplusplus
}
#endif

#endif
