// Package trace shows where time goes: named steps of an operation, for the people who look for it and for the benchmarks. It costs one
// atomic load while nobody looks.
package trace

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Env names the environment variable that prints the steps of the given categories, separated by commas, on stderr: SUPERMACHINE_TRACE=restore.
const Env = "SUPERMACHINE_TRACE"

// Category is a kind of operation.
type Category string

// The categories there are.
const (
	Restore  Category = "restore"  // a VM started from a snapshot
	Snapshot Category = "snapshot" // a running VM saved or forked
	Bake     Category = "bake"     // a snapshot made from an image
)

// Step is one part of an operation that has ended.
type Step struct {
	Category Category
	Object   string        // such as the VM's ID
	Name     string        // what was done, such as "map memory"
	Start    time.Duration // since the operation's beginning
	Took     time.Duration
}

var sink atomic.Pointer[func(Step)]

// SetSink has f called for each step from now on, from any goroutine; nil ends that. It replaces what Env asks for.
func SetSink(f func(Step)) {
	if f == nil {
		sink.Store(nil)
		return
	}
	sink.Store(&f)
}

func init() {
	wanted := map[Category]bool{}
	for _, c := range strings.Split(os.Getenv(Env), ",") {
		if c = strings.TrimSpace(c); c != "" {
			wanted[Category(c)] = true
		}
	}
	if len(wanted) == 0 {
		return
	}
	var mu sync.Mutex
	SetSink(func(s Step) {
		if !wanted[s.Category] {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stderr, "trace %s %s %9.3f ms +%8.3f ms  %s\n", s.Category, s.Object,
			float64(s.Start)/1e6, float64(s.Took)/1e6, s.Name)
	})
}

// Operation is one operation whose steps follow each other. A nil Operation, or one that nobody looks at, does nothing.
type Operation struct {
	category    Category
	object      string
	start, last time.Time
}

// Begin starts an operation. It returns nil while nobody looks.
func Begin(c Category, object string) *Operation {
	if sink.Load() == nil {
		return nil
	}
	now := time.Now()
	return &Operation{category: c, object: object, start: now, last: now}
}

// Step ends the step that began with the operation or its previous step.
func (o *Operation) Step(name string) {
	if o == nil {
		return
	}
	now := time.Now()
	begin := o.last
	o.last = now
	if f := sink.Load(); f != nil {
		(*f)(Step{Category: o.category, Object: o.object, Name: name, Start: begin.Sub(o.start), Took: now.Sub(begin)})
	}
}
