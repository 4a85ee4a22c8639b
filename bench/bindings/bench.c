// What a call of the C library costs that does little: prints {"call": [nanoseconds…]}.
#include <stdio.h>
#include <time.h>

#include "../../capi/ctest/check.h"

int main(void) {
	printf("{\"call\": [");
	for (int i = 0; i < 10000; i++) {
		struct timespec a, b;
		sm_bytes r = {NULL, 0};
		clock_gettime(CLOCK_MONOTONIC, &a);
		CHECK(sm_version(NULL, 0, NULL, 0, &r) == SM_OK);
		sm_bytes_free(&r);
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%s%ld", i > 0 ? "," : "", (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec);
	}
	puts("]}");
	return 0;
}
