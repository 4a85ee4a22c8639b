// Package kvm implements core/hypervisor on Linux's KVM, for amd64. It is pure Go: the structures have the layout of
// <linux/kvm.h> and every call names the section of the kernel's Documentation/virt/kvm/api.rst it follows.
package kvm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// DevicePath is where the kernel offers KVM.
const DevicePath = "/dev/kvm"

// System is an open /dev/kvm.
type System struct {
	fd        int
	mmapSize  int
	xsaveSize int
	hasXCRs   bool // the CPU has XSAVE and with it extended control registers
	cpuid     []hypervisor.CPUIDEntry
	msrs      []uint32
	tscKHz    atomic.Uint32 // of a new vCPU; 0: not asked yet
}

// Open opens /dev/kvm once for the process and returns it. The error, if any, is a *hypervisor.UnavailableError.
func Open() (*System, error) { return openOnce() }

var openOnce = sync.OnceValues(func() (*System, error) { return open(DevicePath, "/proc/cpuinfo") })

// OpenUnchecked is Open on a host whose CPU may have neither vmx nor svm. Guests of a few instructions run on every KVM, which is enough
// to test and measure the host's side; a stock kernel will not come up.
func OpenUnchecked() (*System, error) { return openDevice(DevicePath) }

func open(device, cpuinfo string) (*System, error) {
	s, err := openDevice(device)
	if err != nil {
		return nil, err
	}
	if err := checkCPU(cpuinfo); err != nil {
		unix.Close(s.fd)
		return nil, err
	}
	return s, nil
}

func openDevice(device string) (*System, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, &hypervisor.UnavailableError{
			Reason: device + " does not exist",
			Fix:    "load the kvm_intel or kvm_amd module, enable virtualization in the firmware, or pass the device into the container (--device /dev/kvm)",
			Err:    os.NewSyscallError("open", err),
		}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, &hypervisor.UnavailableError{
			Reason: "no permission to open " + device,
			Fix:    "add the user to the kvm group (usermod -aG kvm USER) and log in again",
			Err:    os.NewSyscallError("open", err),
		}
	case err != nil:
		return nil, &hypervisor.UnavailableError{Reason: "cannot open " + device, Err: os.NewSyscallError("open", err)}
	}
	s := &System{fd: fd}
	if err := s.probe(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

// checkCPU refuses a host whose KVM works without hardware virtualization: such a KVM (PVM and its like) interprets kernel
// code and never brings a stock guest up, so failing here is kinder than a boot that times out.
func checkCPU(cpuinfo string) error {
	data, err := os.ReadFile(cpuinfo)
	if err != nil {
		return &hypervisor.UnavailableError{Reason: "cannot read the CPU's features", Err: err}
	}
	for _, line := range strings.Split(string(data), "\n") {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			for _, f := range strings.Fields(flags) {
				if f == "vmx" || f == "svm" {
					return nil
				}
			}
		}
	}
	return &hypervisor.UnavailableError{
		Reason: DevicePath + " opens, but the CPU offers neither vmx nor svm, so it cannot run a stock guest kernel",
		Fix:    "use a machine with hardware or nested virtualization",
	}
}

func (s *System) probe() error {
	v, err := ioctl(s.fd, kvmGetAPIVersion, 0, "KVM_GET_API_VERSION")
	if err != nil || v != 12 {
		return &hypervisor.UnavailableError{Reason: fmt.Sprintf("%s does not speak version 12 of the KVM API", DevicePath), Err: err}
	}
	required := []struct {
		cap  uintptr
		name string
	}{
		{capUserMemory, "KVM_CAP_USER_MEMORY"}, {capIRQChip, "KVM_CAP_IRQCHIP"}, {capPIT2, "KVM_CAP_PIT2"},
		{capIRQFD, "KVM_CAP_IRQFD"}, {capIOEventFD, "KVM_CAP_IOEVENTFD"}, {capImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"},
	}
	for _, c := range required {
		if n, err := ioctl(s.fd, kvmCheckExtension, c.cap, "KVM_CHECK_EXTENSION"); err != nil || n == 0 {
			return &hypervisor.UnavailableError{Reason: "the kernel's KVM lacks " + c.name, Fix: "use Linux 4.14 or newer", Err: err}
		}
	}
	if s.mmapSize, err = ioctl(s.fd, kvmGetVCPUMmapSize, 0, "KVM_GET_VCPU_MMAP_SIZE"); err != nil {
		return err
	}
	if s.cpuid, err = s.supportedCPUID(); err != nil {
		return err
	}
	if s.msrs, err = s.msrIndexList(); err != nil {
		return err
	}
	// KVM_CAP_XSAVE2 returns the bytes that KVM_GET_XSAVE2 writes, 0 where only the old 4 KiB call exists (API doc §4.134).
	s.xsaveSize = 4096
	if n, err := ioctl(s.fd, kvmCheckExtension, capXSave2, "KVM_CHECK_EXTENSION"); err == nil && n > s.xsaveSize {
		s.xsaveSize = n
	}
	n, err := ioctl(s.fd, kvmCheckExtension, capXCRs, "KVM_CHECK_EXTENSION")
	s.hasXCRs = err == nil && n != 0
	return nil
}

// Name returns "kvm".
func (s *System) Name() string { return "kvm" }

// MaxVCPUs returns the most vCPUs that the kernel allows in one VM.
func (s *System) MaxVCPUs() int {
	n, err := ioctl(s.fd, kvmCheckExtension, capMaxVCPUs, "KVM_CHECK_EXTENSION")
	if err != nil {
		return 1
	}
	return n
}
