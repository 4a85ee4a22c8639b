package admission

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// What errors.Is finds in the errors of this package, besides those of contexts and of the operating system.
var (
	ErrConfig   = errors.New("admission: invalid configuration")
	ErrNoMemory = errors.New("admission: not enough memory") // a *NoMemoryError tells more
)

// NoMemoryError is what Admit returns when there is not enough memory. Sizes are in bytes.
type NoMemoryError struct {
	Need     int64  // what was asked for
	Have     int64  // what could be had: Headroom less Reserved and Margin, 0 or more
	Headroom int64  // what the limit leaves
	Reserved int64  // what of that is for others that are about to use it
	Margin   int64  // what of that is kept free
	Source   string // the limit
	Err      error  // the context's error if Admit has waited; else nil
}

func (e *NoMemoryError) Error() string {
	waited := ""
	if e.Err != nil {
		waited = " after waiting: " + e.Err.Error()
	}
	return fmt.Sprintf("%v%s: %s needed, %s available: %s leaves %s, of which %s are reserved for VMs that are starting and %s are kept free; "+
		"end VMs, give this one less memory, or raise the limit", ErrNoMemory, waited, size(e.Need), size(e.Have), e.Source, size(e.Headroom),
		size(e.Reserved), size(e.Margin))
}

// Unwrap returns the context's error, if it is the cause.
func (e *NoMemoryError) Unwrap() error { return e.Err }

// Is reports whether target is ErrNoMemory.
func (e *NoMemoryError) Is(target error) bool { return target == ErrNoMemory }

// size is a number of bytes for people.
func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Policy is what Admit does if there is not enough memory.
type Policy int

// Policies.
const (
	Fail Policy = iota // return a *NoMemoryError
	Wait               // wait until there is, or the context ends
)

// Config describes a Controller. The zero value is one with the defaults.
type Config struct {
	// Headroom returns how many bytes may still be used, and the limit that says so, for errors; default: Headroom.
	Headroom func() (bytes int64, source string, err error)
	Margin   int64 // bytes that are kept free, 1 or more; default 128 MiB
	Policy   Policy
}

// DefaultMargin is the default of Config.Margin: 128 MiB.
const DefaultMargin = 128 << 20

// Ages of a reading of the headroom. Reading it anew takes longer than a tenth of a restore.
const (
	maxAge = 10 * time.Millisecond // older ones are not used
	minAge = time.Millisecond      // younger ones are good enough to refuse by
)

// pollInterval is how often the headroom is read while somebody waits.
const pollInterval = 50 * time.Millisecond

// Controller admits VMs as long as there is memory for them. What has been admitted and is not yet visible as used memory is counted as
// used, so that no two VMs start on the same free memory. Its methods may be called from any goroutine; it has nothing to close.
type Controller struct {
	cfg   Config
	epoch time.Time // when the controller's clock was zero

	mu       sync.Mutex
	headroom int64 // as read last
	source   string
	readAt   time.Duration // on the controller's clock
	stale    bool          // there may be more than was read
	reserved int64         // admitted and not settled
	settled  int64         // settled since the reading, in which it may be missing
	waiting  list.List     // of *request, oldest first
	polling  bool
	admitted uint64
	refused  uint64
}

// request is an Admit that waits. Whoever takes it from the queue sets its result and then closes done.
type request struct {
	bytes       int64
	place       *list.Element // nil once it is off the queue
	done        chan struct{}
	reservation *Reservation
	err         error
}

// Stats is the state of a Controller at one moment, and what it has done since New.
type Stats struct {
	Reserved int64  // bytes admitted and not settled
	Waiting  int    // callers that wait in Admit
	Admitted uint64 // calls of Admit that succeeded
	Refused  uint64 // those that failed for want of memory
}

// New returns a controller. The error is an ErrConfig that names field and range.
func New(cfg Config) (*Controller, error) {
	if cfg.Headroom == nil {
		cfg.Headroom = Headroom
	}
	if cfg.Margin == 0 {
		cfg.Margin = DefaultMargin
	}
	switch {
	case cfg.Margin < 0:
		return nil, fmt.Errorf("%w: Margin: %d is out of range, 1 byte or more is possible", ErrConfig, cfg.Margin)
	case cfg.Policy != Fail && cfg.Policy != Wait:
		return nil, fmt.Errorf("%w: Policy: %d is neither Fail nor Wait", ErrConfig, cfg.Policy)
	}
	return &Controller{cfg: cfg, epoch: time.Now(), stale: true}, nil
}

// Reservation is the memory of a VM that has been admitted.
type Reservation struct {
	controller *Controller
	bytes      int64
	state      reservationState // under the controller's lock
}

type reservationState int

const (
	stateReserved reservationState = iota
	stateSettled
	stateReleased
)

// Admit asks for the memory of a VM: bytes, 0 or more, is what it is expected to use beyond what it shares with others. On success the
// caller must call Settle when the VM's use has become visible, and Release when the VM is gone or did not come up.
//
// If there is not enough, it returns a *NoMemoryError (ErrNoMemory) or, if the policy is Wait, waits behind all who came before, however
// little it needs; then it fails only when ctx ends, with a *NoMemoryError that has the context's error as its cause. It also fails if
// the headroom cannot be read. It costs a microsecond if the last reading of the headroom is less than 10 ms old.
func (c *Controller) Admit(ctx context.Context, bytes int64) (*Reservation, error) {
	if bytes < 0 {
		return nil, fmt.Errorf("%w: %d bytes are out of range, 0 or more are possible", ErrConfig, bytes)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, reservation, err := c.begin(bytes)
	if r == nil {
		return reservation, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		c.giveUp(r, ctx.Err())
	}
	return r.reservation, r.err
}

// begin admits or refuses at once, else it queues a request.
func (c *Controller) begin(bytes int64) (*request, *Reservation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting.Len() == 0 {
		fits, err := c.fits(bytes)
		switch {
		case err != nil:
			return nil, nil, err
		case fits:
			return nil, c.admit(bytes), nil
		case c.cfg.Policy == Fail:
			return nil, nil, c.refuse(bytes, nil)
		}
	}
	r := &request{bytes: bytes, done: make(chan struct{})}
	r.place = c.waiting.PushBack(r)
	c.poll()
	return r, nil, nil
}

// giveUp ends a request, unless it has its result already.
func (c *Controller) giveUp(r *request, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.place != nil {
		c.answer(r, nil, c.refuse(r.bytes, cause))
		c.serve() // those behind may need less
	}
}

// answer takes a request off the queue and gives it its result.
func (c *Controller) answer(r *request, reservation *Reservation, err error) {
	c.waiting.Remove(r.place)
	r.place, r.reservation, r.err = nil, reservation, err
	close(r.done)
}

// admit counts a VM as admitted.
func (c *Controller) admit(bytes int64) *Reservation {
	c.reserved += bytes
	c.admitted++
	return &Reservation{controller: c, bytes: bytes}
}

// refuse counts a refusal and explains it.
func (c *Controller) refuse(bytes int64, cause error) error {
	c.refused++
	return &NoMemoryError{
		Need: bytes, Have: max(0, c.available()), Headroom: c.headroom, Reserved: c.reserved + c.settled, Margin: c.cfg.Margin,
		Source: c.source, Err: cause,
	}
}

// available is how much may be reserved, by the last reading.
func (c *Controller) available() int64 { return c.headroom - c.reserved - c.settled - c.cfg.Margin }

// fits reports whether there is memory for a VM, by a reading young enough.
func (c *Controller) fits(bytes int64) (bool, error) {
	age, fits := c.now()-c.readAt, bytes <= c.available()
	if age < maxAge && (fits || age < minAge && !c.stale) {
		return fits, nil
	}
	if err := c.read(); err != nil {
		return false, err
	}
	return bytes <= c.available(), nil
}

func (c *Controller) now() time.Duration { return time.Since(c.epoch) }

// read reads the headroom. What was settled before is in it.
func (c *Controller) read() error {
	headroom, source, err := c.cfg.Headroom()
	if err != nil {
		c.stale = true
		return err
	}
	c.headroom, c.source, c.readAt = headroom, source, c.now()
	c.settled, c.stale = 0, false
	return nil
}

// serve admits those who wait, in order, as far as there is memory.
func (c *Controller) serve() {
	for c.waiting.Len() > 0 {
		r := c.waiting.Front().Value.(*request)
		fits, err := c.fits(r.bytes)
		switch {
		case err != nil:
			c.answer(r, nil, err)
		case fits:
			c.answer(r, c.admit(r.bytes), nil)
		default:
			return
		}
	}
}

// poll reads the headroom regularly as long as somebody waits: memory becomes free without anybody telling the controller.
func (c *Controller) poll() {
	if c.polling || c.waiting.Len() == 0 {
		return
	}
	c.polling = true
	time.AfterFunc(pollInterval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.polling = false
		c.serve()
		c.poll()
	})
}

// Settle tells that the VM runs and what it uses shows in the host's free memory, so that nothing need be reserved for it any more.
// Settling again, or after Release, does nothing.
func (r *Reservation) Settle() {
	c := r.controller
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.state == stateReserved {
		r.state = stateSettled
		c.reserved -= r.bytes
		c.settled += r.bytes
	}
}

// Release tells that the VM is gone and its memory free, or that it did not come up. It serves those who wait. Releasing again does
// nothing.
func (r *Reservation) Release() {
	c := r.controller
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.state {
	case stateReleased:
		return
	case stateReserved:
		c.reserved -= r.bytes
	}
	r.state = stateReleased
	c.stale = true
	c.serve()
}

// Stats returns the controller's state.
func (c *Controller) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{Reserved: c.reserved, Waiting: c.waiting.Len(), Admitted: c.admitted, Refused: c.refused}
}
