// The floor of a restore: the bare calls that bring a saved VM to its first exit, in the cheapest order known, on one thread and without a
// library. It answers each byte on its standard input with one line: the nanoseconds of one restore. "floor FILE ENTRY STEPS" gets the
// guest's memory, the address to run at, and whether to name each call's time on standard error.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { maxCPUID = 256, maxMSRs = 512, deviceBase = 0xd0000000, deviceStride = 0x1000, queueNotify = 0x50, firstGSI = 5 };

// The product's devices by their numbers of queues: two disks, vsock, rng, console, balloon.
static const int queues[] = {1, 1, 3, 1, 2, 4};
enum { devices = sizeof queues / sizeof *queues, maxFDs = 64 };

static int kvm, file, steps;
static size_t memorySize, runSize;
static uint64_t entry;

static struct {
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct kvm_xcrs xcrs;
	union {
		struct kvm_xsave area;
		char bytes[1 << 16];
	} xsave;
	struct kvm_lapic_state lapic;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_irqchip chips[3];
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
} state;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[maxCPUID];
} cpuid;
static struct {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[maxMSRs];
} msrs;

static struct vm {
	int fd, vcpu, fds[maxFDs], nfds;
	void *memory;
	struct kvm_run *run;
} vm;

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t last;
static void step(const char *name) {
	if (steps) {
		int64_t t = now();
		fprintf(stderr, "%s %lld\n", name, (long long)(t - last));
		last = now();
	}
}

static int must(int result, const char *name) {
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", name, strerror(errno));
		exit(1);
	}
	return result;
}

#define CALL(fd, request, argument) \
	do { \
		must(ioctl(fd, request, argument), #request); \
		step(#request); \
	} while (0)

// create makes the VM. The memory slot comes before the interrupt controllers: after them it costs a grace period of milliseconds.
static void create(void) {
	vm.nfds = 0;
	vm.fd = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	step("KVM_CREATE_VM");
	vm.memory = mmap(NULL, memorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
	must(vm.memory == MAP_FAILED ? -1 : 0, "mmap");
	step("mmap memory");
	struct kvm_userspace_memory_region slot = {.memory_size = memorySize, .userspace_addr = (uintptr_t)vm.memory};
	CALL(vm.fd, KVM_SET_USER_MEMORY_REGION, &slot);
	CALL(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	uint64_t identity = 0xfffbc000;
	CALL(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	CALL(vm.fd, KVM_CREATE_IRQCHIP, 0);
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
	CALL(vm.fd, KVM_CREATE_PIT2, &pit);
	vm.vcpu = must(ioctl(vm.fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	step("KVM_CREATE_VCPU");
	vm.run = mmap(NULL, runSize, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
	must(vm.run == MAP_FAILED ? -1 : 0, "mmap vCPU");
	step("mmap vCPU");
	CALL(vm.vcpu, KVM_SET_CPUID2, &cpuid);
}

static int event(void) { return vm.fds[vm.nfds++] = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"); }

static void wire(void) {
	for (int d = 0; d < devices; d++) {
		struct kvm_irqfd irq = {.fd = event(), .gsi = firstGSI + d};
		must(ioctl(vm.fd, KVM_IRQFD, &irq), "KVM_IRQFD");
		for (int q = 0; q < queues[d]; q++) {
			struct kvm_ioeventfd bell = {
				.addr = deviceBase + d * deviceStride + queueNotify, .len = 4, .datamatch = q, .fd = event(), .flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
			};
			must(ioctl(vm.fd, KVM_IOEVENTFD, &bell), "KVM_IOEVENTFD");
		}
	}
	step("eventfds");
}

static void load(void) {
	for (int i = 0; i < 3; i++)
		CALL(vm.fd, KVM_SET_IRQCHIP, &state.chips[i]);
	CALL(vm.fd, KVM_SET_PIT2, &state.pit);
	CALL(vm.fd, KVM_SET_CLOCK, &state.clock);
	CALL(vm.vcpu, KVM_SET_SREGS, &state.sregs);
	CALL(vm.vcpu, KVM_SET_REGS, &state.regs);
	CALL(vm.vcpu, KVM_SET_XCRS, &state.xcrs);
	CALL(vm.vcpu, KVM_SET_XSAVE, &state.xsave);
	CALL(vm.vcpu, KVM_SET_LAPIC, &state.lapic);
	CALL(vm.vcpu, KVM_SET_DEBUGREGS, &state.debug);
	must(ioctl(vm.vcpu, KVM_SET_MSRS, &msrs) - (int)msrs.head.nmsrs, "KVM_SET_MSRS");
	step("KVM_SET_MSRS");
	CALL(vm.vcpu, KVM_SET_VCPU_EVENTS, &state.events);
	CALL(vm.vcpu, KVM_SET_MP_STATE, &state.mp);
}

static void run(void) {
	CALL(vm.vcpu, KVM_RUN, 0);
	if (vm.run->exit_reason != KVM_EXIT_IO || vm.run->io.port != 0x3f8) {
		fprintf(stderr, "floor: the guest left for reason %d\n", vm.run->exit_reason);
		exit(1);
	}
}

static void destroy(void) {
	for (int i = 0; i < vm.nfds; i++)
		close(vm.fds[i]);
	munmap(vm.run, runSize);
	close(vm.vcpu);
	close(vm.fd);
	munmap(vm.memory, memorySize);
}

// readMSRs leaves out those that KVM lists and yet refuses to read.
static void readMSRs(void) {
	static struct {
		struct kvm_msr_list head;
		uint32_t indices[maxMSRs];
	} list = {.head.nmsrs = maxMSRs};
	must(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list), "KVM_GET_MSR_INDEX_LIST");
	struct kvm_msr_entry *entries = msrs.entries;
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = {.head.nmsrs = 1, .entry.index = list.indices[i]};
		if (ioctl(vm.vcpu, KVM_GET_MSRS, &one) == 1)
			entries[msrs.head.nmsrs++] = one.entry;
	}
}

// keepSettable leaves out those that KVM refuses to be set, so that one call takes the rest.
static void keepSettable(void) {
	for (;;) {
		int n = must(ioctl(vm.vcpu, KVM_SET_MSRS, &msrs), "KVM_SET_MSRS");
		if (n == (int)msrs.head.nmsrs)
			return;
		msrs.head.nmsrs--;
		memmove(&msrs.entries[n], &msrs.entries[n + 1], (msrs.head.nmsrs - n) * sizeof *msrs.entries);
	}
}

// capture runs the guest to its first exit and takes its state, to go on at the entry point.
static void capture(void) {
	cpuid.head.nent = maxCPUID;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	create();
	must(ioctl(vm.vcpu, KVM_GET_SREGS, &state.sregs), "KVM_GET_SREGS");
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 0xb, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_segment task = {.limit = 0x67, .type = 0xb, .present = 1};
	state.sregs.cs = code;
	state.sregs.ds = state.sregs.es = state.sregs.ss = state.sregs.fs = state.sregs.gs = data;
	state.sregs.tr = task;
	state.sregs.cr0 = 1;
	must(ioctl(vm.vcpu, KVM_SET_SREGS, &state.sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = {.rip = entry, .rflags = 2};
	must(ioctl(vm.vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	run();
	vm.run->immediate_exit = 1; // completes the access
	if (ioctl(vm.vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
		must(-1, "KVM_RUN");
	vm.run->immediate_exit = 0;
	must(ioctl(vm.vcpu, KVM_GET_MP_STATE, &state.mp), "KVM_GET_MP_STATE");
	must(ioctl(vm.vcpu, KVM_GET_REGS, &state.regs), "KVM_GET_REGS");
	must(ioctl(vm.vcpu, KVM_GET_SREGS, &state.sregs), "KVM_GET_SREGS");
	must(ioctl(vm.vcpu, KVM_GET_XCRS, &state.xcrs), "KVM_GET_XCRS");
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2) > 4096)
		must(ioctl(vm.vcpu, KVM_GET_XSAVE2, &state.xsave), "KVM_GET_XSAVE2");
	else
		must(ioctl(vm.vcpu, KVM_GET_XSAVE, &state.xsave), "KVM_GET_XSAVE");
	must(ioctl(vm.vcpu, KVM_GET_LAPIC, &state.lapic), "KVM_GET_LAPIC");
	must(ioctl(vm.vcpu, KVM_GET_DEBUGREGS, &state.debug), "KVM_GET_DEBUGREGS");
	must(ioctl(vm.vcpu, KVM_GET_VCPU_EVENTS, &state.events), "KVM_GET_VCPU_EVENTS");
	for (int i = 0; i < 3; i++) {
		state.chips[i].chip_id = i;
		must(ioctl(vm.fd, KVM_GET_IRQCHIP, &state.chips[i]), "KVM_GET_IRQCHIP");
	}
	must(ioctl(vm.fd, KVM_GET_PIT2, &state.pit), "KVM_GET_PIT2");
	must(ioctl(vm.fd, KVM_GET_CLOCK, &state.clock), "KVM_GET_CLOCK");
	state.clock.flags = 0;
	readMSRs();
	keepSettable();
	state.regs.rip = entry;
	destroy();
}

int main(int argc, char **argv) {
	if (argc < 3) {
		fprintf(stderr, "usage: floor FILE ENTRY [steps]\n");
		return 2;
	}
	file = must(open(argv[1], O_RDONLY | O_CLOEXEC), argv[1]);
	struct stat st;
	must(fstat(file, &st), argv[1]);
	memorySize = st.st_size;
	entry = strtoull(argv[2], NULL, 0);
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	runSize = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	capture();
	steps = argc > 3;
	while (getchar() != EOF) {
		int64_t start = last = now();
		create();
		wire();
		load();
		run();
		int64_t took = now() - start;
		destroy(); // the machine is quiet again when the answer is there
		printf("%lld\n", (long long)took);
		fflush(stdout);
	}
	return 0;
}
