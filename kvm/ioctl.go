package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The request numbers of the KVM API, for amd64.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetMSRIndexList     = 0xc004ae02
	kvmCheckExtension      = 0xae03
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmSetIdentityMapAddr  = 0x4008ae48
	kvmCreateIRQChip       = 0xae60
	kvmGetIRQChip          = 0xc208ae62
	kvmSetIRQChip          = 0x8208ae63
	kvmIRQFD               = 0x4020ae76
	kvmCreatePIT2          = 0x4040ae77
	kvmIOEventFD           = 0x4040ae79
	kvmSetClock            = 0x4030ae7b
	kvmGetClock            = 0x8030ae7c
	kvmRun                 = 0xae80
	kvmGetRegs             = 0x8090ae81
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmGetMSRs             = 0xc008ae88
	kvmSetMSRs             = 0x4008ae89
	kvmGetLAPIC            = 0x8400ae8e
	kvmSetLAPIC            = 0x4400ae8f
	kvmSetCPUID2           = 0x4008ae90
	kvmGetMPState          = 0x8004ae98
	kvmSetMPState          = 0x4004ae99
	kvmGetPIT2             = 0x8070ae9f
	kvmGetVCPUEvents       = 0x8040ae9f
	kvmSetPIT2             = 0x4070aea0
	kvmSetVCPUEvents       = 0x4040aea0
	kvmGetDebugRegs        = 0x8080aea1
	kvmSetDebugRegs        = 0x4080aea2
	kvmSetTSCKHz           = 0xaea2
	kvmGetTSCKHz           = 0xaea3
	kvmGetXSave            = 0x9000aea4
	kvmSetXSave            = 0x5000aea5
	kvmGetXCRs             = 0x8188aea6
	kvmSetXCRs             = 0x4188aea7
	kvmKVMClockCtrl        = 0xaead
	kvmGetStatsFD          = 0xaece
	kvmGetXSave2           = 0x9000aecf
)

// Extensions asked with KVM_CHECK_EXTENSION (KVM API doc §4.4).
const (
	capIRQChip       = 0
	capUserMemory    = 3
	capIRQFD         = 32
	capIOEventFD     = 36
	capPIT2          = 33
	capXCRs          = 56
	capMaxVCPUs      = 66
	capTSCDeadline   = 72
	capImmediateExit = 136
	capXSave2        = 208
)

// ioctl issues one request and retries when a signal interrupted it. The error names the request, never a bare errno.
func ioctl(fd int, req uintptr, arg uintptr, name string) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, fmt.Errorf("kvm: %s: %w", name, errno)
		}
		return int(n), nil
	}
}

// ioctlPtr issues a request whose argument is a pointer to arg.
func ioctlPtr[T any](fd int, req uintptr, arg *T, name string) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("kvm: %s: %w", name, errno)
		}
		return nil
	}
}

func isErrno(err error, want unix.Errno) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && errno == want
}
