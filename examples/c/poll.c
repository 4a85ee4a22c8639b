/* Runs several programs at once in one VM, on one thread, and shows what they write as it comes: poll IMAGE COMMAND… */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "example.h"

enum { MAX = 16 };

int main(int argc, char **argv) {
	int n = argc - 2;
	if (n < 1 || n > MAX) {
		fprintf(stderr, "usage: poll IMAGE COMMAND...\n");
		return 2;
	}
	mp bake = mp_map(2);
	mp_str(&bake, "ref", argv[1]);
	mp_bool(&bake, "boot_only", 1);
	uint64_t image = (uint64_t)must_number("make the image", sm_image_from_oci, 0, bake, "image");
	uint64_t vm = (uint64_t)must_number("start a VM", sm_vm_start, image, mp_map(0), "vm");

	/* polled[0] is the queue, polled[1 + i] the output of command i */
	struct pollfd polled[1 + MAX];
	uint64_t queue, exec[MAX];
	if (sm_queue_open(&queue, &polled[0].fd) != SM_OK)
		return 1;
	polled[0].events = POLLIN;
	for (int i = 0; i < n; i++) {
		const char *const args[] = {"sh", "-c", argv[2 + i], NULL};
		mp start = mp_map(2);
		mp_strs(&start, "args", args);
		mp_bool(&start, "stdout", 1);
		sm_bytes started = must("start a command", sm_vm_exec, vm, start);
		exec[i] = (uint64_t)number(&started, "exec");
		polled[1 + i].fd = (int)number(&started, "stdout");
		polled[1 + i].events = POLLIN;
		sm_bytes_free(&started);
		sm_async async = {queue, (uint64_t)i, NULL};
		if (sm_exec_wait(&async, exec[i], NULL, 0, NULL) != SM_OK)
			return 1;
	}
	for (int open = n, running = n; open > 0 || running > 0;) {
		if (poll(polled, 1 + (nfds_t)n, -1) < 0 && errno != EINTR)
			return 1;
		for (int i = 0; i < n; i++) {
			char buffer[4096];
			if (polled[1 + i].fd < 0 || polled[1 + i].revents == 0)
				continue;
			ssize_t got = read(polled[1 + i].fd, buffer, sizeof buffer);
			if (got > 0) {
				printf("%d: %.*s", i, (int)got, buffer);
			} else {
				close(polled[1 + i].fd);
				polled[1 + i].fd = -1; /* which poll passes over */
				open--;
			}
		}
		sm_completion end;
		while (sm_queue_next(queue, &end) == SM_OK && end.kind != SM_COMPLETION_NONE) {
			printf("%d: status %d\n", (int)end.tag, (int)number(&end.payload, "code"));
			sm_bytes_free(&end.payload);
			must_do("close the command", sm_exec_close, exec[end.tag], mp_map(0));
			running--;
		}
	}
	sm_queue_close(queue);
	must_do("close the VM", sm_vm_close, vm, mp_map(0));
	must_do("close the image", sm_image_close, image, mp_map(0));
	return 0;
}
