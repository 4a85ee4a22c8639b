package core

import (
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/snapshot"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// workingSet is the set of pages that VMs of a snapshot use until they have answered their first request. The first VM shows it; those after
// it get the pages while they start. It is kept beside the snapshot.
type workingSet struct {
	mu       sync.Mutex
	pages    *memory.WorkingSet
	observed bool // a VM shows it, or has shown it
}

func (w *workingSet) decode(b []byte) {
	var pages memory.WorkingSet
	if b != nil && msgpack.Unmarshal(b, &pages) == nil {
		w.pages, w.observed = &pages, true
	}
}

func (w *workingSet) set() *memory.WorkingSet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pages
}

// observe has the VM show the pages with its first answer, if no other does.
func (w *workingSet) observe(store *snapshot.Store, id string, vm *VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.observed {
		return
	}
	w.observed = true
	vm.firstAnswer = func() {
		vm.machine.WithMemory(func(m *hypervisor.Memory) {
			pages, err := memory.Touched(regionBytes(m))
			if err != nil {
				return
			}
			w.mu.Lock()
			w.pages = &pages
			w.mu.Unlock()
			if b, err := msgpack.Marshal(pages); err == nil {
				store.SetWorkingSet(id, b) // it only saves time
			}
		})
	}
}
