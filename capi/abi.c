// The C side of libsupermachine: the exported functions, which refuse what must not reach Go, and the care for the host program's signals.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../include/supermachine.h"
#include "_cgo_export.h"

// ---- the host program's signals
//
// The runtime of Go starts threads and installs handlers when the library is loaded. Its threads inherit the signal mask of the thread that
// loads it, so all signals are blocked meanwhile: those of the process are then delivered to the program's own threads, which have stacks for
// its handlers. And the dispositions that it has changed are put back, but for those of faults and of SIGURG, without which it cannot live.

static const int kept[] = {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT};
#define NKEPT (sizeof kept / sizeof kept[0])
static struct sigaction before[NKEPT];
static sigset_t mask;

// Constructors with a priority run before the one of Go's runtime, which has none; those without run after it, in the order of linking.
__attribute__((constructor(101))) static void before_go(void) {
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	for (size_t i = 0; i < NKEPT; i++)
		sigaction(kept[i], NULL, &before[i]);
}

// ---- fork

static atomic_int forked;

static void in_child(void) { atomic_store(&forked, 1); }

__attribute__((constructor)) static void after_go(void) {
	pthread_atfork(NULL, NULL, in_child);
	Dl_info self = {0};
	dladdr((void *)after_go, &self);
	goStarted((char *)(self.dli_fname != NULL ? self.dli_fname : "")); // waits until the runtime is up: it changes no disposition any more
	for (size_t i = 0; i < NKEPT; i++) {
		struct sigaction now;
		sigaction(kept[i], NULL, &now);
		int flags = before[i].sa_flags;
		if (before[i].sa_handler != SIG_DFL && before[i].sa_handler != SIG_IGN)
			flags |= SA_ONSTACK; // a handler may be run on a goroutine's small stack
		before[i].sa_flags = flags;
		if (now.sa_handler != before[i].sa_handler || now.sa_flags != flags)
			sigaction(kept[i], &before[i], NULL);
	}
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

SM_API int32_t sm_signals_check(void) {
	static const int taken[] = {SIGCHLD, SIGPROF, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSTKFLT, SIGURG}; // Go unblocks them in every thread
	int32_t changed = 0;
	for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++) {
		struct sigaction now;
		if (sigaction(taken[i], NULL, &now) != 0 || now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN || (now.sa_flags & SA_ONSTACK))
			continue;
		now.sa_flags |= SA_ONSTACK;
		if (sigaction(taken[i], &now, NULL) == 0)
			changed++;
	}
	return changed;
}

// ---- what is refused before Go is entered

#define MAX_REQUEST ((size_t)1 << 30)

static int32_t fail(int32_t code, const char *name, const char *message, sm_bytes *result) {
	if (result == NULL)
		return code;
	result->data = NULL;
	result->len = 0;
	size_t n = strlen(name), m = strlen(message);
	unsigned char *b = malloc(64 + n + m);
	if (b == NULL)
		return code;
	// {"code": code, "name": name, "message": message}; both texts are shorter than 256 bytes
	unsigned char *p = b;
	*p++ = 0x83;
	memcpy(p, "\xa4" "code", 5), p += 5;
	*p++ = (unsigned char)code;
	memcpy(p, "\xa4" "name", 5), p += 5;
	*p++ = 0xd9, *p++ = (unsigned char)n;
	memcpy(p, name, n), p += n;
	memcpy(p, "\xa7" "message", 8), p += 8;
	*p++ = 0xd9, *p++ = (unsigned char)m;
	memcpy(p, message, m), p += m;
	result->data = b;
	result->len = (size_t)(p - b);
	return code;
}

static int32_t refuse_forked(sm_bytes *result) {
	return fail(SM_ERR_FORKED, "forked", "this process was forked after libsupermachine was loaded; use it in the parent, or execute a program first", result);
}

static int32_t call(int number, const sm_async *async, uint64_t handle, const void *request, size_t len, sm_bytes *result) {
	if (atomic_load(&forked))
		return refuse_forked(result);
	if ((request == NULL && len > 0) || len > MAX_REQUEST)
		return fail(SM_ERR_INVALID_ARGUMENT, "invalid_argument", "the options have a length without bytes, or one of more than 1 GiB", result);
	return goCall(number, (sm_async *)async, handle, (void *)request, len, result);
}

// ---- the exported functions

enum {
#define SM_CALL(name) number_##name,
#include "calls.h"
#undef SM_CALL
};

#define SM_CALL(name)                                                                                                              \
	SM_API int32_t sm_##name(const sm_async *async, uint64_t handle, const void *request, size_t len, sm_bytes *result) {        \
		return call(number_##name, async, handle, request, len, result);                                                             \
	}
#include "calls.h"
#undef SM_CALL

SM_API int32_t sm_abi_version(void) { return SM_ABI_VERSION; }

SM_API void sm_bytes_free(sm_bytes *bytes) {
	if (bytes == NULL)
		return;
	free((void *)bytes->data);
	bytes->data = NULL;
	bytes->len = 0;
}

SM_API int32_t sm_queue_open(uint64_t *queue, int *fd) {
	if (atomic_load(&forked))
		return SM_ERR_FORKED;
	if (queue == NULL || fd == NULL)
		return SM_ERR_INVALID_ARGUMENT;
	return goQueueOpen(queue, fd);
}

SM_API int32_t sm_queue_next(uint64_t queue, sm_completion *completion) {
	if (atomic_load(&forked))
		return SM_ERR_FORKED;
	if (completion == NULL)
		return SM_ERR_INVALID_ARGUMENT;
	memset(completion, 0, sizeof *completion);
	return goQueueNext(queue, completion);
}

SM_API int32_t sm_queue_close(uint64_t queue) { return atomic_load(&forked) ? SM_ERR_FORKED : goQueueClose(queue); }

SM_API int32_t sm_call_cancel(uint64_t call) {
	if (atomic_load(&forked))
		return SM_ERR_FORKED;
	goCallCancel(call);
	return SM_OK;
}

SM_API int32_t sm_call_abandon(uint64_t call) {
	if (atomic_load(&forked))
		return SM_ERR_FORKED;
	goCallAbandon(call);
	return SM_OK;
}
