package main

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// settle brings the writable layer to rest, so that a copy of its disk is whole by itself. lean also gives up what the kernel caches: it
// would only make a saved memory larger.
func settle(lean bool) {
	if fd, err := unix.Open(scratchDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		unix.Syncfs(fd)
		unix.Close(fd)
	}
	if lean {
		write("/proc/sys/vm/drop_caches", "3")
		write("/proc/sys/vm/compact_memory", "1")
	}
}

// adopt gives the kernel what tells this guest from all others that have the same memory. Nothing of the workload runs meanwhile.
func adopt(id wire.Identity) error {
	return errors.Join(stir(id.Entropy), stepClock(id))
}

// The ioctls of linux/random.h.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

// stir credits the entropy and makes every generator of the kernel start anew from it, those behind the vDSO too.
func stir(entropy []byte) error {
	f, err := os.OpenFile("/dev/random", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var pool struct {
		bits, size int32
		data       [wire.EntropySize]byte
	}
	pool.size = int32(copy(pool.data[:], entropy))
	pool.bits = 8 * pool.size
	for _, step := range []struct {
		name string
		req  uintptr
		arg  unsafe.Pointer
	}{{"add entropy", rndAddEntropy, unsafe.Pointer(&pool)}, {"reseed the random number generator", rndReseedCRNG, nil}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), step.req, uintptr(step.arg)); errno != 0 {
			return fmt.Errorf("%s: %w", step.name, errno)
		}
	}
	return nil
}

// stepClock sets the wall clock, which stood still since the machine was saved. The monotonic clocks go on from where they stood.
func stepClock(id wire.Identity) error {
	ts := unix.NsecToTimespec(id.Time.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
