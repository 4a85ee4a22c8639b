package core

import (
	"context"
	"runtime"
	"sync"

	"github.com/supermachine/supermachine/core/admission"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// Admission says what this process does before it starts a VM. See SetAdmission.
type Admission struct {
	// Wait makes a start wait for memory, as long as its context allows, where it fails else.
	Wait bool
	// MarginMiB is the memory that VMs leave to the host, in MiB; default 128.
	MarginMiB int
	// Parallel is how many VMs are restored at the same time; the others wait. Default: twice the number of CPUs.
	Parallel int
	// PerVMMiB is what a restored VM is expected to need for itself before it is seen in the host's memory; default 16. A booted VM is
	// expected to need a quarter of its memory.
	PerVMMiB int
}

// The admission of this process.
var admitting struct {
	mu         sync.Mutex
	controller *admission.Controller
	gate       *admission.Gate
	perVM      int64
}

// SetAdmission changes how this process decides whether a VM may start. It holds for starts that begin from now on.
func SetAdmission(a Admission) error {
	setDefault(&a.MarginMiB, 128)
	setDefault(&a.Parallel, 2*runtime.GOMAXPROCS(0))
	setDefault(&a.PerVMMiB, 16)
	for _, r := range []struct {
		name   string
		value  int
		lo, hi int
	}{{"margin", a.MarginMiB, 1, 1 << 20}, {"parallel starts", a.Parallel, 1, 1024}, {"memory of a VM", a.PerVMMiB, 1, 1 << 20}} {
		if r.value < r.lo || r.value > r.hi {
			return rangeError("set admission", r.name, r.value, r.lo, r.hi)
		}
	}
	policy := admission.Fail
	if a.Wait {
		policy = admission.Wait
	}
	c, err := admission.New(admission.Config{Margin: int64(a.MarginMiB) << 20, Policy: policy})
	if err != nil {
		return wrap("set admission", "", err)
	}
	admitting.mu.Lock()
	defer admitting.mu.Unlock()
	admitting.controller, admitting.gate, admitting.perVM = c, admission.NewGate(a.Parallel), int64(a.PerVMMiB)<<20
	return nil
}

func init() {
	if err := SetAdmission(Admission{}); err != nil {
		panic(err)
	}
}

// admit waits until there is memory for a VM, or fails, as the process wants it. need is in bytes, 0 for what a restored VM takes.
func admit(ctx context.Context, need int64) (*admission.Reservation, *admission.Gate, error) {
	admitting.mu.Lock()
	controller, gate, perVM := admitting.controller, admitting.gate, admitting.perVM
	admitting.mu.Unlock()
	if need == 0 {
		need = perVM
	}
	room, err := controller.Admit(ctx, need)
	return room, gate, err
}

// startGated starts a VM once there is memory for it and not too many others are starting.
func (c *checkpoint) startGated(ctx context.Context, o StartOptions, set *memory.WorkingSet) (*VM, error) {
	room, gate, err := admit(ctx, 0)
	if err != nil {
		return nil, err
	}
	leave, err := gate.Enter(ctx)
	if err != nil {
		room.Release()
		return nil, err
	}
	defer leave()
	vm, err := c.start(ctx, o, set)
	if err != nil {
		room.Release()
		counters.failed.Add(1)
		return nil, err
	}
	vm.room = room
	room.Settle()
	return vm, nil
}
