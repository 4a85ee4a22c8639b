// Lives through signals, children and threads beside busy VMs and a second Go library: storm IMAGE SECOND_LIBRARY SECONDS
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static uint64_t image;
static pthread_barrier_t started;
static atomic_bool over;
static atomic_int calls;
static atomic_int counts[32];

// A handler as hosts have them: it needs more stack than a goroutine may have left.
static void count(int s) {
	volatile char room[16384];
	room[0] = (char)s;
	room[sizeof room - 1] = room[0];
	counts[s]++;
}

static void *busy(void *arg) {
	(void)arg;
	uint64_t vm = (uint64_t)expect_number(SM_OK, sm_vm_start, image, mp_map(0), "vm");
	pthread_barrier_wait(&started);
	while (!over) {
		mp m = mp_map(1);
		mp_strs(&m, "args", (const char *const[]){"echo", "x", NULL});
		sm_bytes r = expect(SM_OK, sm_vm_run, vm, m);
		mp_value out = mp_get(r.data, r.len, "stdout");
		CHECK(out.n == 2 && memcmp(out.p, "x\n", 2) == 0);
		sm_bytes_free(&r);
		calls++;
	}
	expect_code(SM_OK, sm_vm_close, vm, mp_map(0));
	return NULL;
}

static void *quick(void *arg) {
	(void)arg;
	while (!over) {
		expect_code(SM_OK, sm_version, 0, mp_map(0));
		nanosleep(&(struct timespec){0, 1000000}, NULL);
	}
	return NULL;
}

static const int taken[] = {SIGUSR1, SIGUSR2, SIGWINCH, SIGHUP, SIGPROF, SIGCHLD};
#define NTAKEN (sizeof taken / sizeof taken[0])

static void *signals(void *arg) {
	(void)arg;
	while (!over) {
		for (size_t i = 0; i < NTAKEN; i++)
			kill(getpid(), taken[i]);
		nanosleep(&(struct timespec){0, 5000000}, NULL);
	}
	return NULL;
}

static int status_of(pid_t pid) {
	int status;
	while (waitpid(pid, &status, 0) != pid)
		CHECK(errno == EINTR);
	return status;
}

int main(int argc, char **argv) {
	CHECK(argc == 4);
	CHECK(dlopen(argv[2], RTLD_NOW) != NULL);
	for (size_t i = 0; i < NTAKEN; i++) {
		struct sigaction a = {.sa_handler = count, .sa_flags = SA_RESTART};
		CHECK(sigaction(taken[i], &a, NULL) == 0);
	}
	CHECK(sm_signals_check() == 2); // SIGCHLD and SIGPROF
	mp bake = mp_map(3);
	mp_str(&bake, "ref", argv[1]), mp_bool(&bake, "boot_only", 1), mp_uint(&bake, "memory_mib", 96);
	image = (uint64_t)expect_number(SM_OK, sm_image_from_oci, 0, bake, "image");

	pthread_t threads[4];
	void *(*const work[])(void *) = {busy, busy, quick, signals};
	CHECK(pthread_barrier_init(&started, NULL, 3) == 0);
	for (size_t i = 0; i < 4; i++) {
		if (i == 2)
			pthread_barrier_wait(&started); // the storm begins when the VMs run
		CHECK(pthread_create(&threads[i], NULL, work[i], NULL) == 0);
	}
	int children = 0;
	for (time_t end = time(NULL) + atoi(argv[3]); time(NULL) < end; children += 2) {
		pid_t pid;
		CHECK(posix_spawnp(&pid, "true", NULL, NULL, (char *[]){"true", NULL}, NULL) == 0 && status_of(pid) == 0);
		if ((pid = fork()) == 0)
			_exit(7);
		CHECK(pid > 0 && WEXITSTATUS(status_of(pid)) == 7);
		nanosleep(&(struct timespec){0, 50000000}, NULL); // for one CPU to serve the VMs too
	}
	over = 1;
	for (size_t i = 0; i < 4; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	for (size_t i = 0; i < NTAKEN; i++)
		CHECK(counts[taken[i]] > 0);
	CHECK(calls > 0 && children > 0);
	expect_code(SM_OK, sm_image_close, image, mp_map(0));
	printf("%d programs in VMs, %d children, %d signals\n", calls, children, counts[SIGUSR1]);
	return 0;
}
