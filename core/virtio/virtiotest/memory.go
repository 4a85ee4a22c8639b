// Package virtiotest is a small model of a guest for tests of virtio devices: guest memory, a driver that brings a device up
// through its MMIO registers, and the driver's side of split virtqueues. It can also do everything that a driver must not do.
package virtiotest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Base is the guest physical address where the memory of NewMemory begins.
const Base = 0x10000

// NewMemory returns size bytes of guest RAM at Base, outside the Go heap like a real guest's, freed at the test's end.
func NewMemory(t testing.TB, size int) *hypervisor.Memory {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return hypervisor.NewMemory(hypervisor.Region{Addr: Base, Bytes: b})
}

// allocator hands out guest memory from the start and never takes it back.
type allocator struct {
	t    testing.TB
	mem  *hypervisor.Memory
	next uint64
}

func (a *allocator) alloc(n int, align uint64) (uint64, []byte) {
	a.t.Helper()
	addr := (a.next + align - 1) &^ (align - 1)
	b, ok := a.mem.Slice(addr, uint64(n))
	require.Truef(a.t, ok, "virtiotest: guest memory exhausted allocating %d bytes at %#x", n, addr)
	a.next = addr + uint64(n)
	return addr, b
}
