// Package trace shows what happens and where time goes: named steps of operations, for the people who look for it and for the benchmarks. It
// costs one atomic load while nobody looks.
package trace

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Env names the environment variable that prints the steps of the given categories, separated by commas, on stderr: SUPERMACHINE_TRACE=restore,exec. "all"
// stands for all of them.
const Env = "SUPERMACHINE_TRACE"

// Category is a kind of operation.
type Category string

// The categories there are.
const (
	Boot     Category = "boot"     // a VM booted from an image
	Restore  Category = "restore"  // a VM started from a snapshot
	Snapshot Category = "snapshot" // a running VM saved or forked
	Bake     Category = "bake"     // a snapshot made from an image
	Exec     Category = "exec"     // a program run in a VM
	VSock    Category = "vsock"    // a connection between host and guest
	FS       Category = "fs"       // a volume or a mount
	Net      Category = "net"      // a guest's network
	Pool     Category = "pool"     // VMs kept ready
	OCI      Category = "oci"      // an image made available
)

// Categories returns all of them.
func Categories() []Category {
	return []Category{Boot, Restore, Snapshot, Bake, Exec, VSock, FS, Net, Pool, OCI}
}

// ParseCategories reads names of categories; none, and "all", are all of them. The error names the first that there is not.
func ParseCategories(names ...string) ([]Category, error) {
	var out []Category
	for _, n := range names {
		c := Category(strings.TrimSpace(n))
		switch {
		case c == "":
		case c == "all":
			return Categories(), nil
		case !slices.Contains(Categories(), c):
			return nil, fmt.Errorf("there is no trace category %q; there are %v", string(c), Categories())
		default:
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return Categories(), nil
	}
	return out, nil
}

// Step is one part of an operation that has ended, or what has happened at once.
type Step struct {
	Category Category
	Object   string        // such as the VM's ID
	Name     string        // what was done, such as "map memory"
	Start    time.Duration // since the operation's beginning
	Took     time.Duration // 0 for what has happened at once
}

// sink is somebody who looks.
type sink struct {
	wanted []Category
	tell   func(Step)
}

var (
	changing sync.Mutex
	sinks    atomic.Pointer[[]*sink] // nil: nobody looks
)

// Add has tell called for each step of the categories from now on, from any goroutine and several at once, until remove is called. It must not block.
func Add(tell func(Step), categories ...Category) (remove func()) {
	s := &sink{categories, tell}
	change(func(all []*sink) []*sink { return append(slices.Clone(all), s) })
	return func() {
		change(func(all []*sink) []*sink {
			return slices.DeleteFunc(slices.Clone(all), func(other *sink) bool { return other == s })
		})
	}
}

func change(f func([]*sink) []*sink) {
	changing.Lock()
	defer changing.Unlock()
	var all []*sink
	if old := sinks.Load(); old != nil {
		all = *old
	}
	if all = f(all); len(all) == 0 {
		sinks.Store(nil)
		return
	}
	sinks.Store(&all)
}

// AddLogger logs each step of the categories at the debug level, until remove is called.
func AddLogger(l *slog.Logger, categories ...Category) (remove func()) {
	return Add(func(s Step) {
		l.LogAttrs(context.Background(), slog.LevelDebug, s.Name, slog.String("category", string(s.Category)), slog.String("object", s.Object),
			slog.Duration("start", s.Start), slog.Duration("took", s.Took))
	}, categories...)
}

func init() {
	names := os.Getenv(Env)
	if strings.TrimSpace(names) == "" {
		return
	}
	categories, err := ParseCategories(strings.Split(names, ",")...)
	if err != nil {
		fmt.Fprintf(os.Stderr, "supermachine: %s: %v\n", Env, err)
		return
	}
	AddLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})), categories...)
}

// Wanted reports whether somebody looks at a category.
func Wanted(c Category) bool {
	all := sinks.Load()
	return all != nil && slices.ContainsFunc(*all, func(s *sink) bool { return slices.Contains(s.wanted, c) })
}

func tell(step Step) {
	if all := sinks.Load(); all != nil {
		for _, s := range *all {
			if slices.Contains(s.wanted, step.Category) {
				s.tell(step)
			}
		}
	}
}

// Event tells what has happened at once.
func Event(c Category, object, format string, args ...any) {
	if Wanted(c) {
		tell(Step{Category: c, Object: object, Name: fmt.Sprintf(format, args...)})
	}
}

// Operation is one operation whose steps follow each other. A nil Operation, or one that nobody looks at, does nothing.
type Operation struct {
	category    Category
	object      string
	start, last time.Time
}

// Begin starts an operation. It returns nil while nobody looks.
func Begin(c Category, object string) *Operation {
	if !Wanted(c) {
		return nil
	}
	now := time.Now()
	return &Operation{category: c, object: object, start: now, last: now}
}

// Step ends the step that began with the operation or its previous step.
func (o *Operation) Step(format string, args ...any) {
	if o == nil {
		return
	}
	now := time.Now()
	begin := o.last
	o.last = now
	name := format
	if len(args) > 0 {
		name = fmt.Sprintf(format, args...)
	}
	tell(Step{Category: o.category, Object: o.object, Name: name, Start: begin.Sub(o.start), Took: now.Sub(begin)})
}
