package machine

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// cpuTime is the CPU time of one vCPU's thread.
type cpuTime struct {
	tid   atomic.Int32 // 0 while there is no thread
	ended atomic.Int64 // nanoseconds of the thread that has ended
}

// begin is called on the vCPU's thread. What it returns is called at the thread's end.
func (c *cpuTime) begin() (end func()) {
	c.tid.Store(int32(unix.Gettid()))
	return func() {
		c.ended.Store(threadTime(c.tid.Swap(0)))
	}
}

func (c *cpuTime) read() time.Duration {
	if tid := c.tid.Load(); tid != 0 {
		if ns := threadTime(tid); ns > 0 {
			return time.Duration(ns)
		}
	}
	return time.Duration(c.ended.Load())
}

// CPUTime returns how much of the host's CPUs the vCPUs have used, what the host does for them included.
func (m *Machine) CPUTime() (total time.Duration) {
	for i := range m.cpu {
		total += m.cpu[i].read()
	}
	return total
}

// PageFaults returns how many accesses of the guest to its memory the host has had to resolve. It fails with ErrEnded for a machine that has ended.
func (m *Machine) PageFaults() (n uint64, err error) {
	running := m.WithMemory(func(*hypervisor.Memory) {
		for i := range m.cfg.VCPUs {
			var one uint64
			if one, err = m.vm.VCPU(i).PageFaults(); err != nil {
				return
			}
			n += one
		}
	})
	if !running {
		err = ErrEnded
	}
	return n, err
}
