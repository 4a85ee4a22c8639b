/* Takes a fresh VM from a pool for each line of its input, and runs the line in it as a shell command: pool IMAGE */
#include <string.h>

#include "example.h"

int main(int argc, char **argv) {
	if (argc != 2) {
		fprintf(stderr, "usage: pool IMAGE\n");
		return 2;
	}
	mp bake = mp_map(2);
	mp_str(&bake, "ref", argv[1]);
	mp_bool(&bake, "boot_only", 1);
	uint64_t image = (uint64_t)must_number("make the image", sm_image_from_oci, 0, bake, "image");
	mp limits = mp_map(2);
	mp_uint(&limits, "min", 1);
	mp_uint(&limits, "max", 4);
	uint64_t pool = (uint64_t)must_number("make a pool", sm_pool_new, image, limits, "pool");

	char line[4096];
	while (fgets(line, sizeof line, stdin) != NULL) {
		uint64_t vm = (uint64_t)must_number("acquire a VM", sm_pool_acquire, pool, mp_map(0), "vm");
		const char *const args[] = {"sh", "-c", line, NULL};
		mp run = mp_map(1);
		mp_strs(&run, "args", args);
		sm_bytes out = must("run the command", sm_vm_run, vm, run);
		mp_value text = mp_get(out.data, out.len, "stdout");
		fwrite(text.p, 1, text.n, stdout);
		sm_bytes_free(&out);
		must_do("release the VM", sm_vm_close, vm, mp_map(0));
	}
	sm_bytes stats = must("ask the pool", sm_pool_stats, pool, mp_map(0));
	fprintf(stderr, "%d acquired, %d started, median wait %d ns\n", (int)number(&stats, "acquires"), (int)number(&stats, "starts"),
		(int)number(&stats, "acquire_p50_ns"));
	sm_bytes_free(&stats);

	must_do("close the pool", sm_pool_close, pool, mp_map(0));
	must_do("close the image", sm_image_close, image, mp_map(0));
	return 0;
}
