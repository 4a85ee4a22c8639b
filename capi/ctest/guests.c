// Uses the ABI with a real guest, well and badly: guests IMAGE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static uint64_t image;

static uint64_t start(void) { return (uint64_t)expect_number(SM_OK, sm_vm_start, image, mp_map(0), "vm"); }

static mp shell(const char *script) {
	const char *const args[] = {"sh", "-c", script, NULL};
	mp m = mp_map(1);
	mp_strs(&m, "args", args);
	return m;
}

// Requires what a script writes.
static void says(uint64_t vm, const char *script, const char *want) {
	sm_bytes r = expect(SM_OK, sm_vm_run, vm, shell(script));
	mp_value out = mp_get(r.data, r.len, "stdout");
	if (out.n != strlen(want) || memcmp(out.p, want, out.n) != 0) {
		fprintf(stderr, "%s: said %.*s, expected %s\n", script, (int)out.n, (const char *)out.p, want);
		abort();
	}
	sm_bytes_free(&r);
}

// Waits for the next item of a queue.
static sm_completion next(uint64_t queue, int fd) {
	sm_completion c;
	for (;;) {
		CHECK(sm_queue_next(queue, &c) == SM_OK);
		if (c.kind != SM_COMPLETION_NONE)
			return c;
		struct pollfd p = {fd, POLLIN, 0};
		CHECK(poll(&p, 1, 60000) == 1 || errno == EINTR);
	}
}

static void make_image(const char *ref) {
	uint64_t queue;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	mp bake = mp_map(3);
	mp_str(&bake, "ref", ref);
	mp_bool(&bake, "boot_only", 1);
	mp_uint(&bake, "memory_mib", 96);
	sm_async async = {queue, 1, NULL};
	CHECK(sm_image_from_oci(&async, 0, bake.data, bake.len, NULL) == SM_OK);
	free(bake.data);
	int events = 0;
	sm_completion c;
	while ((c = next(queue, fd)).kind == SM_COMPLETION_EVENT) {
		CHECK(mp_get(c.payload.data, c.payload.len, "event").type == 's');
		sm_bytes_free(&c.payload);
		events++;
	}
	if (c.code != SM_OK) {
		mp_value m = mp_get(c.payload.data, c.payload.len, "message");
		fprintf(stderr, "%.*s\n", (int)m.n, (const char *)m.p);
	}
	CHECK(c.code == SM_OK && events > 0);
	image = (uint64_t)mp_get(c.payload.data, c.payload.len, "image").i;
	sm_bytes_free(&c.payload);
	CHECK(sm_queue_close(queue) == SM_OK);
}

static void errors(uint64_t vm) {
	const char *const nothing[] = {"/nothing", NULL}, *const no_program[] = {"/etc/passwd", NULL};
	mp m = mp_map(1);
	mp_strs(&m, "args", nothing);
	expect_code(SM_ERR_COMMAND_NOT_FOUND, sm_vm_run, vm, m);
	m = mp_map(1);
	mp_strs(&m, "args", no_program);
	expect_code(SM_ERR_NOT_EXECUTABLE, sm_vm_run, vm, m);
	expect_code(SM_ERR_INVALID_ARGUMENT, sm_vm_run, vm, mp_map(0));
	m = mp_map(1);
	mp_str(&m, "path", "/nothing");
	expect_code(SM_ERR_NOT_FOUND, sm_vm_read_file, vm, m);
	m = mp_map(1);
	mp_uint(&m, "port", 81);
	expect_code(SM_ERR_REFUSED, sm_vm_connect, vm, m);
	expect_code(SM_ERR_REFUSED, sm_vm_connect, vm, mp_map(0)); // busybox exposes no port, and no program listens
	m = mp_map(1);
	mp_uint(&m, "n", 5000);
	expect_code(SM_ERR_INVALID_ARGUMENT, sm_vm_fork, vm, m);
	m = mp_map(1);
	mp_str(&m, "ref", "no such image");
	expect_code(SM_ERR_INVALID_ARGUMENT, sm_store_pull, 0, m);
	m = mp_map(2);
	mp_strs(&m, "args", nothing);
	mp_bool(&m, "stdin", 1);
	expect_code(SM_ERR_COMMAND_NOT_FOUND, sm_vm_exec, vm, m);
	CHECK(fcntl(0, F_GETFD) >= 0);
}

// writer fills a socket from a thread of its own.
struct writer {
	int fd;
	size_t total;
};

static void *write_all(void *arg) {
	struct writer *w = arg;
	char block[65536];
	for (size_t done = 0; done < w->total;) {
		for (size_t i = 0; i < sizeof block; i++)
			block[i] = (char)((done + i) * 2654435761u >> 13);
		size_t at = 0, n = w->total - done < sizeof block ? w->total - done : sizeof block;
		while (at < n) {
			ssize_t sent = send(w->fd, block + at, n - at, MSG_NOSIGNAL);
			CHECK(sent > 0);
			at += (size_t)sent;
		}
		done += n;
	}
	CHECK(close(w->fd) == 0);
	return NULL;
}

static void streams(uint64_t vm) {
	const char *const args[] = {"cat", NULL};
	mp m = mp_map(3);
	mp_strs(&m, "args", args);
	mp_bool(&m, "stdin", 1);
	mp_bool(&m, "stdout", 1);
	sm_bytes r = expect(SM_OK, sm_vm_exec, vm, m);
	uint64_t exec = (uint64_t)mp_get(r.data, r.len, "exec").i;
	int in = (int)mp_get(r.data, r.len, "stdin").i, out = (int)mp_get(r.data, r.len, "stdout").i;
	CHECK(mp_get(r.data, r.len, "stderr").i == -1 && mp_get(r.data, r.len, "pid").i > 0);
	CHECK(fcntl(in, F_GETFD) & FD_CLOEXEC && !(fcntl(in, F_GETFL) & O_NONBLOCK));
	sm_bytes_free(&r);

	struct writer w = {in, 8 << 20};
	pthread_t t;
	CHECK(pthread_create(&t, NULL, write_all, &w) == 0);
	unsigned char block[65536];
	size_t done = 0;
	ssize_t got;
	while ((got = read(out, block, sizeof block)) > 0)
		for (ssize_t i = 0; i < got; i++, done++)
			CHECK(block[i] == (unsigned char)(done * 2654435761u >> 13));
	CHECK(got == 0 && done == w.total);
	CHECK(pthread_join(t, NULL) == 0 && close(out) == 0);
	CHECK(expect_number(SM_OK, sm_exec_wait, exec, mp_map(0), "code") == 0);
	expect_code(SM_OK, sm_exec_close, exec, mp_map(0));
	expect_code(SM_ERR_INVALID_HANDLE, sm_exec_wait, exec, mp_map(0));
}

static void signals_and_cancellation(uint64_t vm) {
	mp m = shell("sleep 1000");
	uint64_t exec = (uint64_t)expect_number(SM_OK, sm_vm_exec, vm, m, "exec");
	m = mp_map(1);
	mp_str(&m, "signal", "nothing");
	expect_code(SM_ERR_INVALID_ARGUMENT, sm_exec_signal, exec, m);
	m = mp_map(1);
	mp_str(&m, "signal", "term");
	expect_code(SM_OK, sm_exec_signal, exec, m);
	CHECK(expect_number(SM_OK, sm_exec_wait, exec, mp_map(0), "signal") == SIGTERM);
	expect_code(SM_OK, sm_exec_close, exec, mp_map(0));

	uint64_t queue, call;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	sm_async async = {queue, 3, &call};
	m = shell("echo started; sleep 1000");
	CHECK(sm_vm_run(&async, vm, m.data, m.len, NULL) == SM_OK);
	free(m.data);
	CHECK(sm_call_cancel(call) == SM_OK);
	sm_completion c = next(queue, fd);
	CHECK(c.code == SM_ERR_CANCELED && c.tag == 3);
	sm_bytes_free(&c.payload);
	CHECK(sm_queue_close(queue) == SM_OK);
	says(vm, "echo still here", "still here\n");
}

static void files(uint64_t vm) {
	mp m = mp_map(3);
	mp_str(&m, "path", "/tmp/a");
	mp_bin(&m, "data", "some\0bytes", 10);
	mp_uint(&m, "mode", 0600);
	expect_code(SM_OK, sm_vm_write_file, vm, m);
	says(vm, "stat -c '%a %s' /tmp/a", "600 10\n");
	m = mp_map(1);
	mp_str(&m, "path", "/tmp/a");
	sm_bytes r = expect(SM_OK, sm_vm_read_file, vm, m);
	mp_value data = mp_get(r.data, r.len, "data");
	CHECK(data.n == 10 && memcmp(data.p, "some\0bytes", 10) == 0);
	sm_bytes_free(&r);
	m = mp_map(2);
	mp_str(&m, "path", "/tmp/a");
	mp_uint(&m, "max_bytes", 9);
	expect_code(SM_ERR_LIMIT, sm_vm_read_file, vm, m);

	for (int commit = 0; commit < 2; commit++) {
		m = mp_map(1);
		mp_str(&m, "path", "/tmp/a");
		r = expect(SM_OK, sm_vm_create_file, vm, m);
		uint64_t file = (uint64_t)mp_get(r.data, r.len, "file").i;
		int fd = (int)mp_get(r.data, r.len, "fd").i;
		sm_bytes_free(&r);
		CHECK(send(fd, "new", 3, MSG_NOSIGNAL) == 3 && close(fd) == 0);
		if (commit)
			expect_code(SM_OK, sm_file_wait, file, mp_map(0));
		expect_code(SM_OK, sm_file_close, file, mp_map(0));
		says(vm, "wc -c < /tmp/a", commit ? "3\n" : "10\n");
	}
}

static void connections(uint64_t vm) {
	says(vm, "nc -l -p 7 -e cat >/dev/null 2>&1 </dev/null & while ! netstat -ltn | grep -q :7; do sleep 0.1; done", "");
	mp m = mp_map(1);
	mp_uint(&m, "port", 7);
	int fd = (int)expect_number(SM_OK, sm_vm_connect, vm, m, "fd");
	char got[8];
	CHECK(send(fd, "hello", 5, MSG_NOSIGNAL) == 5 && shutdown(fd, SHUT_WR) == 0);
	CHECK(recv(fd, got, sizeof got, MSG_WAITALL) == 5 && memcmp(got, "hello", 5) == 0 && close(fd) == 0);
	m = mp_map(1);
	mp_uint(&m, "port", 7);
	sm_bytes r = expect(SM_OK, sm_vm_forward, vm, m);
	CHECK(mp_get(r.data, r.len, "address").n > 10);
	expect_code(SM_OK, sm_forward_close, (uint64_t)mp_get(r.data, r.len, "forward").i, mp_map(0));
	sm_bytes_free(&r);
}

static void *run_for_long(void *arg) {
	uint64_t vm = *(uint64_t *)arg;
	mp m = shell("sleep 1000");
	sm_bytes r = {NULL, 0};
	int32_t code = sm_vm_run(NULL, vm, m.data, m.len, &r);
	CHECK(code == SM_ERR_CANCELED || code == SM_ERR_VM_ENDED || code == SM_ERR_INVALID_HANDLE);
	sm_bytes_free(&r);
	free(m.data);
	return NULL;
}

static void closing_under_calls(void) {
	uint64_t vm = start();
	pthread_t t[8];
	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(&t[i], NULL, run_for_long, &vm) == 0);
	uint64_t exec = (uint64_t)expect_number(SM_OK, sm_vm_exec, vm, shell("sleep 1000"), "exec");
	expect_code(SM_OK, sm_vm_close, vm, mp_map(0));
	for (int i = 0; i < 8; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
	sm_bytes r = {NULL, 0};
	int32_t code = sm_exec_wait(NULL, exec, NULL, 0, &r);
	CHECK(code == SM_ERR_CANCELED || code == SM_ERR_VM_ENDED);
	sm_bytes_free(&r);
	expect_code(SM_OK, sm_exec_close, exec, mp_map(0));
	expect_code(SM_ERR_INVALID_HANDLE, sm_vm_close, vm, mp_map(0));
}

static void pools(void) {
	mp m = mp_map(3);
	mp_uint(&m, "min", 1);
	mp_uint(&m, "max", 1);
	mp_uint(&m, "acquire_timeout_ms", 50);
	uint64_t pool = (uint64_t)expect_number(SM_OK, sm_pool_new, image, m, "pool");
	uint64_t queue;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	for (int i = 0; i < 3; i++) {
		uint64_t vm = 0;
		while (vm == 0) { // until it is ready
			sm_bytes r = {NULL, 0};
			int32_t code = sm_pool_acquire(NULL, pool, NULL, 0, &r);
			CHECK(code == SM_OK || code == SM_ERR_EXHAUSTED);
			if (code == SM_OK)
				vm = (uint64_t)mp_get(r.data, r.len, "vm").i;
			sm_bytes_free(&r);
		}
		expect_code(SM_ERR_EXHAUSTED, sm_pool_acquire, pool, mp_map(0));
		says(vm, "ls /tmp; touch /tmp/mine", "");
		// A call that is under way when the VM is released does not reach the next one who has it.
		sm_async async = {queue, 0, NULL};
		m = shell("sleep 1; touch /tmp/left-behind");
		CHECK(sm_vm_run(&async, vm, m.data, m.len, NULL) == SM_OK);
		free(m.data);
		expect_code(SM_OK, i < 2 ? sm_vm_close : sm_vm_discard, vm, mp_map(0));
		expect_code(SM_ERR_INVALID_HANDLE, sm_vm_info, vm, mp_map(0));
		sm_completion c = next(queue, fd);
		CHECK(c.code == SM_ERR_CANCELED || c.code == SM_ERR_INVALID_HANDLE);
		sm_bytes_free(&c.payload);
	}
	CHECK(sm_queue_close(queue) == SM_OK);
	expect_code(SM_OK, sm_pool_close, pool, mp_map(0));
	expect_code(SM_ERR_INVALID_HANDLE, sm_pool_stats, pool, mp_map(0));
}

static void forks_and_snapshots(uint64_t vm) {
	says(vm, "echo kept > /tmp/kept", "");
	mp m = mp_map(1);
	mp_uint(&m, "n", 2);
	sm_bytes r = expect(SM_OK, sm_vm_fork, vm, m);
	mp_value vms = mp_get(r.data, r.len, "vms"), child;
	CHECK(vms.type == 'a' && vms.i == 2);
	const unsigned char *p = vms.p, *end = (const unsigned char *)r.data + r.len;
	for (int i = 0; i < 2; i++) {
		p = mp_read(p, end, &child);
		CHECK(p != NULL && child.type == 'i');
		says((uint64_t)child.i, "cat /tmp/kept", "kept\n");
		expect_code(SM_OK, sm_vm_close, (uint64_t)child.i, mp_map(0));
	}
	sm_bytes_free(&r);
	m = mp_map(2);
	mp_str(&m, "name", "saved");
	mp_uint(&m, "base", image);
	uint64_t saved = (uint64_t)expect_number(SM_OK, sm_vm_snapshot, vm, m, "image");
	uint64_t again = (uint64_t)expect_number(SM_OK, sm_vm_start, saved, mp_map(0), "vm");
	says(again, "cat /tmp/kept", "kept\n");
	expect_code(SM_OK, sm_vm_close, again, mp_map(0));
	expect_code(SM_OK, sm_image_close, saved, mp_map(0));
	m = mp_map(1);
	mp_str(&m, "name", "saved");
	saved = (uint64_t)expect_number(SM_OK, sm_image_from_snapshot, 0, m, "image");
	expect_code(SM_OK, sm_image_close, saved, mp_map(0));
	m = mp_map(1);
	mp_str(&m, "name", "saved");
	expect_code(SM_OK, sm_store_remove, 0, m);
	m = mp_map(1);
	mp_str(&m, "name", "saved");
	expect_code(SM_ERR_NOT_FOUND, sm_store_inspect, 0, m);
}

static void forked_children_leave_vms_alone(uint64_t vm) {
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		_exit(sm_vm_close(NULL, vm, NULL, 0, NULL) == SM_ERR_FORKED ? 0 : 1);
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	says(vm, "echo still here", "still here\n");
}

static int open_fds(void) {
	int n = 0;
	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

int main(int argc, char **argv) {
	CHECK(argc == 2);
	make_image(argv[1]);
	uint64_t vm = start();
	says(vm, "echo $((6 * 7))", "42\n");
	errors(vm);
	streams(vm);
	signals_and_cancellation(vm);
	files(vm);
	connections(vm);
	forked_children_leave_vms_alone(vm);
	int before = open_fds();
	closing_under_calls();
	pools();
	CHECK(open_fds() <= before + 2); // of which Go keeps some
	forks_and_snapshots(vm);
	expect_code(SM_OK, sm_vm_stop, vm, mp_map(0));
	CHECK(expect_number(SM_OK, sm_vm_info, vm, mp_map(0), "running") == 0);
	expect_code(SM_ERR_VM_ENDED, sm_vm_run, vm, shell("true"));
	expect_code(SM_OK, sm_vm_close, vm, mp_map(0));
	expect_code(SM_OK, sm_image_close, image, mp_map(0));
	puts("ok");
	return 0;
}
