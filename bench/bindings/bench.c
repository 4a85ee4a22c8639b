// What the calls of the C library cost: bench SNAPSHOT. Prints {"call": [nanoseconds…]}.
#include <stdio.h>
#include <time.h>

#include "../../capi/ctest/check.h"

int main(int argc, char **argv) {
	CHECK(argc == 2);
	mp m = mp_map(1);
	mp_str(&m, "name", argv[1]);
	uint64_t image = (uint64_t)expect_number(SM_OK, sm_image_from_snapshot, 0, m, "image");
	uint64_t vm = (uint64_t)expect_number(SM_OK, sm_vm_start, image, mp_map(0), "vm");
	printf("{\"call\": [");
	for (int i = 0; i < 3000; i++) {
		struct timespec a, b;
		sm_bytes r = {NULL, 0};
		clock_gettime(CLOCK_MONOTONIC, &a);
		CHECK(sm_vm_info(NULL, vm, NULL, 0, &r) == SM_OK);
		clock_gettime(CLOCK_MONOTONIC, &b);
		sm_bytes_free(&r);
		printf("%s%ld", i > 0 ? "," : "", (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec);
	}
	puts("]}");
	expect_code(SM_OK, sm_vm_close, vm, mp_map(0));
	expect_code(SM_OK, sm_image_close, image, mp_map(0));
	return 0;
}
