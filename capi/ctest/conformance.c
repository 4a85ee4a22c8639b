// The cases that all languages share, through the C functions: conformance IMAGE. See capi/conformance.
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

// What a case gives: a key once for each of its values.
typedef struct {
	const char *key;
	char type;
	int64_t i;
	const char *p;
	size_t n;
} value;

typedef struct {
	const char *name, *op;
	const char *options;
	size_t len;
	int32_t error;
	value gives[8];
} test_case;

static const test_case cases[] = {
#include "conformance_cases.h"
};
#define NCASES (sizeof cases / sizeof cases[0])

static uint64_t image;

static uint64_t start(void) { return (uint64_t)expect_number(SM_OK, sm_vm_start, image, mp_map(0), "vm"); }

static mp_value option(const test_case *c, const char *key) { return mp_get(c->options, c->len, key); }

// A map of so many keys that begins with the case's path.
static mp path_of(const test_case *c, uint32_t keys) {
	mp_value path = option(c, "path");
	char text[256];
	CHECK(path.n < sizeof text);
	memcpy(text, path.p, path.n);
	text[path.n] = 0;
	mp m = mp_map(keys);
	mp_str(&m, "path", text);
	return m;
}

static mp shell(const char *script) {
	mp m = mp_map(1);
	mp_strs(&m, "args", (const char *const[]){"sh", "-c", script, NULL});
	return m;
}

// Requires the nth value that the case gives under a key.
static void gives(const test_case *c, const char *key, int nth, const void *p, size_t n) {
	for (const value *v = c->gives; v->key != NULL; v++)
		if (strcmp(v->key, key) == 0 && nth-- == 0) {
			if (v->n != n || memcmp(v->p, p, n) != 0) {
				fprintf(stderr, "%s: %s is %.*s\n", c->name, key, (int)n, (const char *)p);
				abort();
			}
			return;
		}
	fprintf(stderr, "%s: nothing is said of %s\n", c->name, key);
	abort();
}

static void gives_number(const test_case *c, const char *key, int64_t n) {
	for (const value *v = c->gives; v->key != NULL; v++)
		if (strcmp(v->key, key) == 0) {
			if (v->i != n) {
				fprintf(stderr, "%s: %s is %lld\n", c->name, key, (long long)n);
				abort();
			}
			return;
		}
	abort();
}

// Makes a call with the case's own options; its code is the case's.
static sm_bytes as_given(const test_case *c, sm_function call, uint64_t handle) {
	mp copy = {malloc(c->len + 1), c->len, c->len + 1};
	memcpy(copy.data, c->options, c->len);
	return expect(c->error, call, handle, copy);
}

static void run(const test_case *c, uint64_t vm) {
	sm_bytes r = as_given(c, sm_vm_run, vm);
	for (const value *v = c->gives; v->key != NULL; v++) {
		mp_value got = mp_get(r.data, r.len, v->key);
		if (v->type == 's')
			gives(c, v->key, 0, got.p, got.n);
		else
			gives_number(c, v->key, got.i);
	}
	sm_bytes_free(&r);
}

static unsigned char block[65536];

typedef struct {
	int fd;
	int64_t blocks;
} writing;

static void *write_blocks(void *arg) {
	writing *w = arg;
	for (; w->blocks > 0; w->blocks--)
		for (size_t at = 0; at < sizeof block;) {
			ssize_t n = send(w->fd, block + at, sizeof block - at, MSG_NOSIGNAL);
			CHECK(n > 0);
			at += (size_t)n;
		}
	close(w->fd);
	return NULL;
}

static void cat(const test_case *c, uint64_t vm) {
	mp m = mp_map(3);
	mp_strs(&m, "args", (const char *const[]){"cat", NULL});
	mp_bool(&m, "stdin", 1), mp_bool(&m, "stdout", 1);
	sm_bytes r = expect(SM_OK, sm_vm_exec, vm, m);
	writing w = {(int)mp_get(r.data, r.len, "stdin").i, option(c, "bytes").i / (int64_t)sizeof block};
	int out = (int)mp_get(r.data, r.len, "stdout").i;
	uint64_t exec = (uint64_t)mp_get(r.data, r.len, "exec").i;
	sm_bytes_free(&r);
	pthread_t writer;
	CHECK(pthread_create(&writer, NULL, write_blocks, &w) == 0);
	static unsigned char got[1 << 16];
	int64_t total = 0;
	for (ssize_t n; (n = read(out, got, sizeof got)) != 0; total += n) {
		CHECK(n > 0);
		for (ssize_t i = 0; i < n; i++)
			CHECK(got[i] == block[(total + i) % (int64_t)sizeof block]);
	}
	CHECK(pthread_join(writer, NULL) == 0);
	close(out);
	gives_number(c, "bytes", total);
	expect_code(SM_OK, sm_exec_close, exec, mp_map(0));
}

static void read_back(const test_case *c, uint64_t vm, int nth) {
	sm_bytes r = expect(SM_OK, sm_vm_read_file, vm, path_of(c, 1));
	mp_value data = mp_get(r.data, r.len, "data");
	gives(c, "data", nth, data.p, data.n);
	sm_bytes_free(&r);
}

static void write_it(const test_case *c, uint64_t vm) {
	mp m = path_of(c, 2);
	mp_value data = option(c, "data");
	mp_bin(&m, "data", data.p, (uint32_t)data.n);
	expect_code(SM_OK, sm_vm_write_file, vm, m);
}

static void file(const test_case *c, uint64_t vm) {
	sm_bytes r = as_given(c, sm_vm_write_file, vm);
	sm_bytes_free(&r);
	if (c->error != SM_OK)
		return;
	read_back(c, vm, 0);
	char script[300];
	mp_value path = option(c, "path");
	snprintf(script, sizeof script, "printf %%s $(stat -c %%a %.*s)", (int)path.n, (const char *)path.p);
	r = expect(SM_OK, sm_vm_run, vm, shell(script));
	mp_value mode = mp_get(r.data, r.len, "stdout");
	gives(c, "mode", 0, mode.p, mode.n);
	sm_bytes_free(&r);
}

static void read_file(const test_case *c, uint64_t vm) {
	sm_bytes r = as_given(c, sm_vm_read_file, vm);
	sm_bytes_free(&r);
}

static void echo(const test_case *c, int fd) {
	mp_value data = option(c, "data");
	CHECK(send(fd, data.p, data.n, MSG_NOSIGNAL) == (ssize_t)data.n && shutdown(fd, SHUT_WR) == 0);
	char got[256];
	size_t total = 0;
	for (ssize_t n; (n = read(fd, got + total, sizeof got - total)) != 0; total += (size_t)n)
		CHECK(n > 0);
	close(fd);
	gives(c, "data", 0, got, total);
}

static void listen_in(uint64_t vm) {
	sm_bytes r = expect(SM_OK, sm_vm_run, vm, shell("nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"));
	CHECK(mp_get(r.data, r.len, "code").i == 0);
	sm_bytes_free(&r);
}

static mp port_of(const test_case *c) {
	mp m = mp_map(1);
	mp_uint(&m, "port", (uint64_t)option(c, "port").i);
	return m;
}

static void connect_to(const test_case *c, uint64_t vm) {
	listen_in(vm);
	sm_bytes r = expect(c->error, sm_vm_connect, vm, port_of(c));
	if (c->error == SM_OK)
		echo(c, (int)mp_get(r.data, r.len, "fd").i);
	sm_bytes_free(&r);
}

static void forward(const test_case *c, uint64_t vm) {
	listen_in(vm);
	sm_bytes r = expect(SM_OK, sm_vm_forward, vm, port_of(c));
	mp_value address = mp_get(r.data, r.len, "address");
	int port;
	CHECK(sscanf((const char *)address.p, "127.0.0.1:%d", &port) == 1);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
	echo(c, fd);
	expect_code(SM_OK, sm_forward_close, (uint64_t)mp_get(r.data, r.len, "forward").i, mp_map(0));
	sm_bytes_free(&r);
}

static void pool(const test_case *c, uint64_t vm) {
	(void)vm;
	mp m = mp_map(1);
	mp_uint(&m, "max", (uint64_t)option(c, "max").i);
	uint64_t p = (uint64_t)expect_number(SM_OK, sm_pool_new, image, m, "pool");
	for (int i = 0; i < option(c, "rounds").i; i++) {
		uint64_t mine = (uint64_t)expect_number(SM_OK, sm_pool_acquire, p, mp_map(0), "vm");
		sm_bytes r = expect(SM_OK, sm_vm_run, mine, shell("ls /tmp; touch /tmp/mine"));
		mp_value listing = mp_get(r.data, r.len, "stdout");
		gives(c, "listings", i, listing.p, listing.n);
		sm_bytes_free(&r);
		expect_code(SM_OK, sm_vm_close, mine, mp_map(0));
	}
	gives_number(c, "starts", expect_number(SM_OK, sm_pool_stats, p, mp_map(0), "starts"));
	expect_code(SM_OK, sm_pool_close, p, mp_map(0));
}

static void exhaust(const test_case *c, uint64_t vm) {
	(void)vm;
	uint64_t held[8];
	int64_t max = option(c, "max").i;
	CHECK(max <= 8);
	mp m = mp_map(3);
	mp_uint(&m, "min", (uint64_t)max), mp_uint(&m, "max", (uint64_t)max), mp_uint(&m, "acquire_timeout_ms", (uint64_t)option(c, "acquire_timeout_ms").i);
	uint64_t p = (uint64_t)expect_number(SM_OK, sm_pool_new, image, m, "pool");
	while (expect_number(SM_OK, sm_pool_stats, p, mp_map(0), "idle") < max)
		nanosleep(&(struct timespec){0, 20000000}, NULL);
	for (int i = 0; i < max; i++)
		held[i] = (uint64_t)expect_number(SM_OK, sm_pool_acquire, p, mp_map(0), "vm");
	expect_code(c->error, sm_pool_acquire, p, mp_map(0));
	for (int i = 0; i < max; i++)
		expect_code(SM_OK, sm_vm_close, held[i], mp_map(0));
	expect_code(SM_OK, sm_pool_close, p, mp_map(0));
}

static void snapshot(const test_case *c, uint64_t vm) {
	write_it(c, vm);
	mp m = mp_map(1);
	mp_uint(&m, "base", image);
	uint64_t saved = (uint64_t)expect_number(SM_OK, sm_vm_snapshot, vm, m, "image");
	uint64_t again = (uint64_t)expect_number(SM_OK, sm_vm_start, saved, mp_map(0), "vm");
	read_back(c, again, 0);
	expect_code(SM_OK, sm_vm_close, again, mp_map(0));
	expect_code(SM_OK, sm_image_close, saved, mp_map(0));
}

static void fork_it(const test_case *c, uint64_t vm) {
	write_it(c, vm);
	mp m = mp_map(1);
	mp_uint(&m, "n", (uint64_t)option(c, "n").i);
	sm_bytes r = expect(SM_OK, sm_vm_fork, vm, m);
	mp_value children = mp_get(r.data, r.len, "vms"), child;
	const unsigned char *end = (const unsigned char *)r.data + r.len;
	CHECK(children.type == 'a' && children.i == option(c, "n").i);
	for (int64_t i = 0; i < children.i; i++) {
		CHECK((children.p = mp_read(children.p, end, &child)) != NULL);
		read_back(c, (uint64_t)child.i, (int)i);
		expect_code(SM_OK, sm_vm_close, (uint64_t)child.i, mp_map(0));
	}
	sm_bytes_free(&r);
}

static void cancel(const test_case *c, uint64_t vm) {
	uint64_t queue, call;
	int fd;
	CHECK(sm_queue_open(&queue, &fd) == SM_OK);
	sm_async async = {queue, 1, &call};
	CHECK(sm_vm_run(&async, vm, c->options, c->len, NULL) == SM_OK);
	nanosleep(&(struct timespec){0, 500000000}, NULL);
	CHECK(sm_call_cancel(call) == SM_OK);
	struct pollfd p = {fd, POLLIN, 0};
	CHECK(poll(&p, 1, 60000) == 1);
	sm_completion end;
	CHECK(sm_queue_next(queue, &end) == SM_OK && end.kind == SM_COMPLETION_RESULT && end.code == SM_ERR_CANCELED);
	sm_bytes_free(&end.payload);
	CHECK(sm_queue_close(queue) == SM_OK);
	int64_t left = 1;
	for (int i = 0; i < 600 && left != 0; i++) {
		sm_bytes r = expect(SM_OK, sm_vm_run, vm, shell("ps -o args | grep -q '[s]leep 1234'"));
		left = mp_get(r.data, r.len, "code").i == 0;
		sm_bytes_free(&r);
	}
	gives_number(c, "gone", left == 0);
}

static void open_snapshot(const test_case *c, uint64_t vm) {
	(void)vm;
	sm_bytes r = as_given(c, sm_image_from_snapshot, 0);
	sm_bytes_free(&r);
}

static void bake(const test_case *c, uint64_t vm) {
	(void)vm;
	sm_bytes r = as_given(c, sm_image_from_oci, 0);
	sm_bytes_free(&r);
}

static void closed(const test_case *c, uint64_t vm) {
	(void)vm;
	uint64_t mine = start();
	expect_code(SM_OK, sm_vm_close, mine, mp_map(0));
	expect_code(c->error, sm_vm_info, mine, mp_map(0));
}

static void ended(const test_case *c, uint64_t vm) {
	expect_code(SM_OK, sm_vm_kill, vm, mp_map(0));
	expect_code(SM_OK, sm_vm_wait, vm, mp_map(0));
	expect_code(c->error, sm_vm_run, vm, shell("true"));
}

static const struct {
	const char *op;
	void (*run)(const test_case *, uint64_t vm);
} operations[] = {
	{"run", run},           {"cat", cat},         {"file", file},       {"read", read_file}, {"connect", connect_to},
	{"forward", forward},   {"pool", pool},       {"exhaust", exhaust}, {"snapshot", snapshot}, {"fork", fork_it},
	{"cancel", cancel},     {"open", open_snapshot}, {"bake", bake},    {"closed", closed},  {"ended", ended},
};

int main(int argc, char **argv) {
	CHECK(argc == 2);
	for (size_t i = 0; i < sizeof block; i++)
		block[i] = (unsigned char)((i * 31 + (i >> 8)) & 255);
	mp m = mp_map(3);
	mp_str(&m, "ref", argv[1]), mp_bool(&m, "boot_only", 1), mp_uint(&m, "memory_mib", 96);
	image = (uint64_t)expect_number(SM_OK, sm_image_from_oci, 0, m, "image");
	for (size_t i = 0; i < NCASES; i++) {
		bool done = false;
		uint64_t vm = start();
		for (size_t j = 0; j < sizeof operations / sizeof operations[0]; j++)
			if (strcmp(operations[j].op, cases[i].op) == 0) {
				operations[j].run(&cases[i], vm);
				done = true;
			}
		CHECK(done);
		expect_code(SM_OK, sm_vm_close, vm, mp_map(0));
		printf("ok %s\n", cases[i].name);
	}
	expect_code(SM_OK, sm_image_close, image, mp_map(0));
	return 0;
}
