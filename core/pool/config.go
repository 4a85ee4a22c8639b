package pool

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// Instance is what a pool holds, such as a VM.
type Instance interface {
	// Done returns a channel that is closed when the instance has ended, always the same one.
	Done() <-chan struct{}
	// Close ends the instance and waits until all of it is released. The pool calls it once, on a goroutine of its own, also after
	// the instance has ended by itself.
	Close() error
}

// Gate bounds starts across pools; admission.Gate is one.
type Gate interface {
	// Enter blocks until a start may begin or ctx ends. The pool calls leave once, when the start is over.
	Enter(ctx context.Context) (leave func(), err error)
}

// Config describes a pool. Only Start is required.
type Config[T Instance] struct {
	// Start makes a fresh instance. Up to Parallel calls run at the same time. Its ctx ends when the pool is closed; it is not that of
	// an Acquire, since an instance that one caller waited for may go to another.
	Start func(ctx context.Context) (T, error)
	// Reset brings a used instance back to the state that Start gave it, with nothing left of its use; if it returns an error the
	// instance is closed and replaced. Its ctx ends when the pool is closed. Nil: each released instance is closed and replaced.
	Reset func(ctx context.Context, instance T) error
	Gate  Gate // entered around each call of Start; an error of it counts as a failed start. Nil: none

	// Min is how many instances are kept ready, idle, on top of those in use, as far as Max allows: 0 to Max; default 0. The pool thus
	// never has less than Min instances, and a burst of Min callers finds ready ones whatever else is in use.
	Min int
	// Max is how many instances there are at most, idle, in use and starting: 1 to 65536; default the larger of 32 and Min. One that is
	// being closed counts no more, since its successor would wait 20 ms for it, unless more than Reapers are: for a moment there may be
	// Max+Reapers.
	Max int
	// IdleTimeout is after how long with more than Min idle instances the surplus is closed, 0 or more; 0: never.
	IdleTimeout time.Duration
	// AcquireTimeout is how long Acquire waits at most, 0 or more; 0: as long as its context allows.
	AcquireTimeout time.Duration
	Parallel       int // calls of Start, and as many of Reset, at the same time: 1 to 1024; default twice GOMAXPROCS
	Reapers        int // instances being closed at the same time: 1 to 1024; default 32
}

// Default values of Config. Closing VMs is waiting for the kernel: 32 at the same time take hardly longer than one.
const (
	DefaultMax     = 32
	DefaultReapers = 32
)

const (
	maxMax     = 1 << 16
	maxWorkers = 1024
)

// Check returns an ErrConfig that names the first field out of range, and the range; nil if New would take the configuration.
func (c Config[T]) Check() error {
	_, err := c.withDefaults()
	return err
}

// withDefaults returns the config with zero fields replaced where zero means a default.
func (c Config[T]) withDefaults() (Config[T], error) {
	if c.Start == nil {
		return c, fmt.Errorf("%w: Start is required", ErrConfig)
	}
	setDefault(&c.Max, min(max(DefaultMax, c.Min), maxMax))
	setDefault(&c.Parallel, min(2*runtime.GOMAXPROCS(0), maxWorkers))
	setDefault(&c.Reapers, DefaultReapers)
	for _, r := range []struct {
		name          string
		value, lo, hi int
	}{
		{"Max", c.Max, 1, maxMax},
		{"Min", c.Min, 0, c.Max},
		{"Parallel", c.Parallel, 1, maxWorkers},
		{"Reapers", c.Reapers, 1, maxWorkers},
	} {
		if r.value < r.lo || r.value > r.hi {
			return c, fmt.Errorf("%w: %s: %d is out of range, %d to %d are possible", ErrConfig, r.name, r.value, r.lo, r.hi)
		}
	}
	switch {
	case c.IdleTimeout < 0:
		return c, fmt.Errorf("%w: IdleTimeout: %v is out of range, 0 (never) or more is possible", ErrConfig, c.IdleTimeout)
	case c.AcquireTimeout < 0:
		return c, fmt.Errorf("%w: AcquireTimeout: %v is out of range, 0 (no limit) or more is possible", ErrConfig, c.AcquireTimeout)
	}
	return c, nil
}

func setDefault[V comparable](field *V, value V) {
	var zero V
	if *field == zero {
		*field = value
	}
}
