// Abuses the ABI in all ways that a program can get wrong, without any guest: abuse
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static void lengths_and_pointers(void) {
	sm_bytes result;
	CHECK(sm_version(NULL, 0, NULL, 0, NULL) == SM_OK);
	CHECK(sm_version(NULL, 0, NULL, 1, &result) == SM_ERR_INVALID_ARGUMENT);
	CHECK(mp_get(result.data, result.len, "code").i == SM_ERR_INVALID_ARGUMENT);
	CHECK(mp_get(result.data, result.len, "message").n > 10);
	sm_bytes_free(&result);
	sm_bytes_free(&result); // empty by now
	sm_bytes_free(NULL);
	CHECK(sm_version(NULL, 0, "", SIZE_MAX, NULL) == SM_ERR_INVALID_ARGUMENT);
	CHECK(sm_queue_open(NULL, NULL) == SM_ERR_INVALID_ARGUMENT);
	CHECK(sm_queue_next(1, NULL) == SM_ERR_INVALID_ARGUMENT);
	CHECK(sm_abi_version() >= SM_ABI_VERSION);
}

static void hostile_options(void) {
	// Every beginning of valid options, and all of them with each byte changed: some may be taken, none may do harm.
	mp good = mp_map(5);
	const char *const args[] = {"a", "b", NULL};
	mp_str(&good, "ref", "oci:/nowhere");
	mp_strs(&good, "cmd", args);
	mp_bool(&good, "boot_only", 1);
	mp_uint(&good, "memory_mib", 128);
	mp_str(&good, "pull", "never");
	for (size_t n = 1; n < good.len; n++)
		CHECK(sm_image_from_oci(NULL, 77, good.data, n, NULL) == SM_ERR_INVALID_ARGUMENT);
	for (size_t i = 0; i < good.len; i++) {
		unsigned char was = good.data[i];
		for (int bit = 0; bit < 8; bit++) {
			good.data[i] = (unsigned char)(was ^ 1 << bit);
			CHECK(sm_image_from_oci(NULL, 77, good.data, good.len, NULL) != SM_OK); // 77 is no store
		}
		good.data[i] = was;
	}
	free(good.data);
	static const char *const bad[] = {"\xdf\xff\xff\xff\xff", "\x81\xa3ref\xdb\xff\xff\xff\xff", "\x81\xa3" "cmd\xdd\xff\xff\xff\xff", "\xc1", "\x93\x01\x02\x03"};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		CHECK(sm_image_from_oci(NULL, 0, bad[i], strlen(bad[i]), NULL) == SM_ERR_INVALID_ARGUMENT);
}

static void handles(void) {
	uint64_t queue;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	const uint64_t wrong[] = {0, 1, 77, queue, queue ^ 1, (uint64_t)3 << 56 | 12345, UINT64_MAX};
	sm_function on_handle[] = {sm_vm_info, sm_vm_close, sm_vm_run, sm_image_info, sm_image_close, sm_exec_wait, sm_exec_close, sm_pool_acquire, sm_pool_close,
		sm_forward_close, sm_file_wait, sm_file_close, sm_store_close};
	for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
		for (size_t j = 0; j < sizeof on_handle / sizeof on_handle[0]; j++)
			if (on_handle[j] != sm_store_close || wrong[i] != 0)
				expect_code(SM_ERR_INVALID_HANDLE, on_handle[j], wrong[i], mp_map(0));
	CHECK(sm_queue_close(queue) == SM_OK);
	CHECK(sm_queue_close(queue) == SM_ERR_INVALID_HANDLE);
	sm_completion c;
	CHECK(sm_queue_next(queue, &c) == SM_ERR_INVALID_HANDLE);
	sm_async async = {queue, 0, NULL};
	CHECK(sm_doctor(&async, 0, NULL, 0, NULL) == SM_ERR_INVALID_HANDLE);
	CHECK(sm_call_cancel(queue) == SM_OK);
}

static void closing_a_queue_ends_its_calls(void) {
	uint64_t queue, call;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	sm_async async = {queue, 9, &call};
	CHECK(sm_trace(&async, 0, NULL, 0, NULL) == SM_OK);
	CHECK(sm_call_cancel(call) == SM_OK);
	struct pollfd p = {fd, POLLIN, 0};
	CHECK(poll(&p, 1, 10000) == 1);
	sm_completion c;
	CHECK(sm_queue_next(queue, &c) == SM_OK);
	CHECK(c.kind == SM_COMPLETION_RESULT && c.tag == 9 && c.call == call && c.code == SM_ERR_CANCELED);
	sm_bytes_free(&c.payload);
	CHECK(sm_trace(&async, 0, NULL, 0, NULL) == SM_OK);
	CHECK(sm_call_abandon(call) == SM_OK && sm_call_abandon(call) == SM_OK && sm_call_abandon(queue) == SM_OK);
	CHECK(sm_trace(&async, 0, NULL, 0, NULL) == SM_OK);
	CHECK(sm_queue_close(queue) == SM_OK);
}

static void *many(void *arg) {
	(void)arg;
	for (int i = 0; i < 200; i++) {
		uint64_t queue;
		int fd;
		CHECK(sm_queue_open(&queue, &fd) == SM_OK);
		sm_async async = {queue, (uint64_t)i, NULL};
		CHECK(sm_version(&async, 0, NULL, 0, NULL) == SM_OK);
		struct pollfd p = {fd, POLLIN, 0};
		CHECK(poll(&p, 1, 60000) == 1);
		sm_completion c;
		CHECK(sm_queue_next(queue, &c) == SM_OK && c.kind == SM_COMPLETION_RESULT && c.tag == (uint64_t)i);
		sm_bytes_free(&c.payload);
		CHECK(sm_queue_close(queue) == SM_OK);
		expect_code(SM_ERR_INVALID_HANDLE, sm_vm_info, queue, mp_map(0));
	}
	return NULL;
}

static void threads(void) {
	pthread_t t[64];
	for (int i = 0; i < 64; i++)
		CHECK(pthread_create(&t[i], NULL, many, NULL) == 0);
	for (int i = 0; i < 64; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
}

static void forked_children(void) {
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		uint64_t queue;
		int fd;
		sm_bytes result;
		sm_completion c;
		int ok = sm_version(NULL, 0, NULL, 0, &result) == SM_ERR_FORKED && mp_get(result.data, result.len, "name").n == 6 &&
			sm_vm_close(NULL, 5, NULL, 0, NULL) == SM_ERR_FORKED && sm_queue_open(&queue, &fd) == SM_ERR_FORKED &&
			sm_queue_next(0, &c) == SM_ERR_FORKED && sm_queue_close(0) == SM_ERR_FORKED && sm_call_cancel(0) == SM_ERR_FORKED &&
			sm_abi_version() == SM_ABI_VERSION;
		sm_bytes_free(&result);
		_exit(ok ? 0 : 1);
	}
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	expect_code(SM_OK, sm_version, 0, mp_map(0));
}

static const int kept[] = {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD, SIGWINCH, SIGALRM};
#define NKEPT (sizeof kept / sizeof kept[0])

// at_start returns how this program has a signal when it starts, before the library is loaded.
static sighandler_t at_start(int s) { return s == SIGPIPE || s == SIGHUP || s == SIGUSR2 ? SIG_IGN : SIG_DFL; }

static void signals(void) {
	// This program has set none: all are as at its start.
	for (size_t i = 0; i < NKEPT; i++) {
		struct sigaction now;
		CHECK(sigaction(kept[i], NULL, &now) == 0 && now.sa_handler == at_start(kept[i]));
	}
	sigset_t mask;
	CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
	for (int s = 1; s < 32; s++)
		CHECK(sigismember(&mask, s) == 0);
	int pair[2];
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && close(pair[1]) == 0);
	CHECK(write(pair[0], "x", 1) == -1 && errno == EPIPE);
	close(pair[0]);
}

static void handler(int s) { (void)s; }

static void handlers_without_a_stack(void) {
	CHECK(sm_signals_check() == 0);
	struct sigaction mine = {.sa_handler = handler, .sa_flags = SA_RESTART}, now;
	CHECK(sigaction(SIGCHLD, &mine, NULL) == 0 && sigaction(SIGUSR1, &mine, NULL) == 0);
	CHECK(sm_signals_check() == 1 && sm_signals_check() == 0);
	CHECK(sigaction(SIGCHLD, NULL, &now) == 0 && now.sa_handler == handler && (now.sa_flags & SA_ONSTACK) && (now.sa_flags & SA_RESTART));
	signal(SIGCHLD, at_start(SIGCHLD));
	signal(SIGUSR1, at_start(SIGUSR1));
}

int main(int argc, char **argv) {
	if (argc == 1) { // again, with known signals
		for (size_t i = 0; i < NKEPT; i++)
			signal(kept[i], at_start(kept[i]));
		execl("/proc/self/exe", argv[0], "again", (char *)NULL);
		return 1;
	}
	signals();
	lengths_and_pointers();
	hostile_options();
	handles();
	closing_a_queue_ends_its_calls();
	threads();
	forked_children();
	handlers_without_a_stack();
	signals();
	puts("ok");
	return 0;
}
