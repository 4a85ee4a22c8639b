/* Runs a program in a fresh microVM: run IMAGE PROGRAM [ARGUMENT…] */
#include "example.h"

int main(int argc, char **argv) {
	if (argc < 3) {
		fprintf(stderr, "usage: run IMAGE PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	mp bake = mp_map(2);
	mp_str(&bake, "ref", argv[1]);
	mp_bool(&bake, "boot_only", 1);
	uint64_t image = (uint64_t)must_number("make the image", sm_image_from_oci, 0, bake, "image");
	uint64_t vm = (uint64_t)must_number("start a VM", sm_vm_start, image, mp_map(0), "vm");

	mp run = mp_map(1);
	mp_strs(&run, "args", (const char *const *)argv + 2);
	sm_bytes out = must("run the program", sm_vm_run, vm, run);
	mp_value text = mp_get(out.data, out.len, "stdout"), errors = mp_get(out.data, out.len, "stderr");
	fwrite(text.p, 1, text.n, stdout);
	fwrite(errors.p, 1, errors.n, stderr);
	int status = (int)number(&out, "code");
	sm_bytes_free(&out);

	must_do("close the VM", sm_vm_close, vm, mp_map(0));
	must_do("close the image", sm_image_close, image, mp_map(0));
	return status;
}
