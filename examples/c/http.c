/* Asks the web server of an image, which runs in a microVM, for a page: http IMAGE [PATH] */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "example.h"

int main(int argc, char **argv) {
	if (argc < 2) {
		fprintf(stderr, "usage: http IMAGE [PATH]\n");
		return 2;
	}
	mp bake = mp_map(1);
	mp_str(&bake, "ref", argv[1]);
	uint64_t image = (uint64_t)must_number("make the image", sm_image_from_oci, 0, bake, "image");
	uint64_t vm = (uint64_t)must_number("start a VM", sm_vm_start, image, mp_map(0), "vm");
	int fd = (int)must_number("connect to the workload", sm_vm_connect, vm, mp_map(0), "fd");

	char buffer[65536];
	int n = snprintf(buffer, sizeof buffer, "GET %s HTTP/1.0\r\nHost: guest\r\n\r\n", argc > 2 ? argv[2] : "/");
	for (int done = 0; done < n;) {
		ssize_t sent = send(fd, buffer + done, (size_t)(n - done), MSG_NOSIGNAL);
		if (sent < 0) {
			perror("send");
			return 1;
		}
		done += (int)sent;
	}
	shutdown(fd, SHUT_WR);
	ssize_t got;
	while ((got = read(fd, buffer, sizeof buffer)) > 0)
		fwrite(buffer, 1, (size_t)got, stdout);
	close(fd);

	must_do("close the VM", sm_vm_close, vm, mp_map(0));
	must_do("close the image", sm_image_close, image, mp_map(0));
	return got < 0;
}
