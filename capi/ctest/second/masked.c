// Go's threads inherit the mask of the thread that loads the library: with all signals blocked meanwhile, those of the program stay away from them.
#include <pthread.h>
#include <signal.h>

#include "_cgo_export.h"

static sigset_t mask;

__attribute__((constructor(101))) static void before_go(void) {
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
}

__attribute__((constructor)) static void after_go(void) {
	second_ticks(); // waits until the runtime is up
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}
