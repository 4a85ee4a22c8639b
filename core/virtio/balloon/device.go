// Package balloon is the virtio memory balloon device (virtio 1.2 §5.5): the guest gives memory back to the host by inflating the
// balloon when it is asked to, and by reporting free pages on its own.
//
// What the guest gives up is released with madvise(MADV_DONTNEED). The mapping stays accessible: the next access, by a vCPU or by
// this process, finds a fresh page. So a guest that gives up memory which other devices are working on harms nobody but itself.
package balloon

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
)

// Feature bits (virtio 1.2 §5.5.3). The others are not offered: MUST_TELL_HOST, because released pages may be used again without a
// word; FREE_PAGE_HINT, which serves migration; and PAGE_POISON, by which a reported page must read as a certain value afterwards,
// which a private mapping of a file, as of a snapshot, cannot give.
const (
	FeatureStats        uint64 = 1 << 1 // VIRTIO_BALLOON_F_STATS_VQ
	FeatureDeflateOnOOM uint64 = 1 << 2 // VIRTIO_BALLOON_F_DEFLATE_ON_OOM
	FeatureReporting    uint64 = 1 << 5 // VIRTIO_BALLOON_F_PAGE_REPORTING
)

// PageSize is the bytes of a page in the balloon, whatever the guest's page size is (virtio 1.2 §5.5.6).
const PageSize = 4096

// Queue indexes. §5.5.2 gives statsq 2, free_page_vq 3 and reporting_vq 4, and says that each exists only with its feature, but not
// whether a queue that does not exist keeps its index. Linux, like QEMU, numbers the queues that exist: it does not count
// the ones without a name (vm_find_vqs in drivers/virtio/virtio_mmio.c, as of 6.12). Without free page hints the reporting queue
// is therefore 3, and 2 if the driver refused statistics as well; see Device.Notify.
const (
	inflateQueue   = 0
	deflateQueue   = 1
	statsQueue     = 2 // or reporting, if statistics were not negotiated
	reportingQueue = 3

	queues = 4
)

// queueSize is the least with which Linux reports pages (PAGE_REPORTING_CAPACITY): so many ranges are in one report.
const queueSize = 32

// Offsets in the configuration space (virtio 1.2 §5.5.4). What follows actual belongs to features that are not offered.
const (
	configActual = 4
	configBytes  = 8
)

// Config says what New makes.
type Config struct {
	// Discard releases the host's memory behind b, which is whole pages of the host inside guest memory; the content is
	// of no interest any more. It may be called by several goroutines at once. Nil means madvise; other values are for tests.
	Discard func(b []byte) error
}

// Device is a virtio memory balloon. Its own methods may be called at any time from any goroutine.
type Device struct {
	release   func([]byte) error
	hostPage  uintptr
	reclaimed atomic.Int64
	failed    atomic.Pointer[error]

	turn chan struct{} // held by the caller of Stats whose request is under way

	mu      sync.Mutex // guards the statistics queue and what follows; the other queues need no lock
	env     *virtio.Env
	paused  bool
	target  uint32 // pages that the guest is asked to give up
	actual  uint32 // pages that it says it has given up
	changed bool   // target changed and the driver was not told
	stats   request
}

// New returns the device. The balloon's target is zero.
func New(c Config) *Device {
	d := &Device{release: c.Discard, hostPage: uintptr(os.Getpagesize()), turn: make(chan struct{}, 1)}
	if d.release == nil {
		d.release = discard
	}
	return d
}

// SetTarget asks the guest to keep the given bytes of its memory in the balloon, rounded down to whole pages and limited to what the
// device can express. That it is less than the guest's memory, and how much less, is the caller's business. It does not block: the
// guest's driver approaches the target in its own time, or never. A target set before the driver is up or during a pause is
// announced as soon as possible; a reset keeps it.
func (d *Device) SetTarget(bytes int64) {
	pages := uint32(min(max(bytes, 0)/PageSize, math.MaxUint32))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.target == pages {
		return
	}
	d.target, d.changed = pages, true
	d.announce()
}

// announce tells the driver of a new target, if it can be told now. Caller holds mu.
func (d *Device) announce() {
	if !d.changed || d.env == nil || d.paused {
		return
	}
	d.changed = false
	d.env.ConfigChanged()
}

// Target returns the bytes that the guest is asked to keep in the balloon.
func (d *Device) Target() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(d.target) * PageSize
}

// Actual returns the bytes that the guest says are in the balloon: a claim that nobody checks. Zero after a reset.
func (d *Device) Actual() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(d.actual) * PageSize
}

// Reclaimed returns the bytes that were released to the host since the device was activated or restored. A page that the guest uses
// and gives up again counts again, as does one that it had never touched.
func (d *Device) Reclaimed() int64 { return d.reclaimed.Load() }

// Err returns the latest error of the host in releasing memory, or nil. The guest does not notice: it only promised not to care
// about the content.
func (d *Device) Err() error {
	if p := d.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDBalloon }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return FeatureStats | FeatureDeflateOnOOM | FeatureReporting }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	d.mu.Lock()
	config := d.config()
	d.mu.Unlock()
	virtio.ReadConfigBytes(config[:], off, p)
}

// config returns the configuration space. Caller holds mu.
func (d *Device) config() (b [configBytes]byte) {
	binary.LittleEndian.PutUint32(b[0:], d.target)
	binary.LittleEndian.PutUint32(b[configActual:], d.actual)
	return b
}

// WriteConfig implements virtio.Device; the driver may write actual only.
func (d *Device) WriteConfig(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	config := d.config()
	if off < configBytes {
		copy(config[off:], p)
	}
	d.actual = binary.LittleEndian.Uint32(config[configActual:])
}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.env = env
	d.reclaimed.Store(0)
	return nil
}

// Reset implements virtio.Device. The target is the host's wish and stays.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.finish(Stats{}, fmt.Errorf("%w: the device was reset", ErrNoStats))
	d.stats.held = nil
	d.env, d.paused, d.actual = nil, false, 0
}

// Pause implements virtio.Pauser.
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = true
	d.stats.giveBack(d.env)
}

// Resume implements virtio.Pauser. The transport's Notify then announces a new target and goes on with statistics.
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
}

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// Notify implements virtio.Device.
func (d *Device) Notify(queue int) {
	env := d.env // Activate and Reset, which set it, never overlap this
	switch {
	case queue == inflateQueue:
		// The transport has every queue looked at after activation and after a pause.
		d.mu.Lock()
		d.announce()
		d.mu.Unlock()
		drain(env, queue, func(c *virtio.Chain) error { return d.inflate(env, c) })
	case queue == deflateQueue:
		// Released pages need nothing to be used again, so what the array says does not matter.
		drain(env, queue, func(*virtio.Chain) error { return nil })
	case queue == statsQueue && env.Has(FeatureStats):
		d.mu.Lock()
		defer d.mu.Unlock()
		d.serveStats()
	case env.Has(FeatureReporting):
		drain(env, queue, d.report)
	}
}

// drain serves a queue whose chains are answered at once. Each is reported by itself: drivers wait for it before they go on.
func drain(env *virtio.Env, queue int, serve func(*virtio.Chain) error) {
	q := env.Queues[queue]
	for more := true; more; more = q.EnableNotify() {
		q.DisableNotify()
		for {
			c, ok, err := q.Pop()
			if err != nil {
				env.Fail(err)
				return
			}
			if !ok {
				break
			}
			if err := serve(c); err != nil {
				env.Fail(err) // before the driver sees its buffer again; Pop yields nothing more
			}
			q.Push(c.Head, 0)
			q.Flush()
		}
	}
}

// deviceState is what a balloon carries through a snapshot. Of statistics there is nothing: a paused device holds no buffer.
type deviceState struct {
	Target  uint32 // pages
	Actual  uint32 // pages
	Changed bool   // the driver was not told of Target
}

// SaveState implements virtio.Stateful.
func (d *Device) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return msgpack.Marshal(deviceState{Target: d.target, Actual: d.actual, Changed: d.changed})
}

// RestoreState implements virtio.Stateful. It replaces the target; SetTarget may change it right afterwards.
func (d *Device) RestoreState(b []byte) error {
	var s deviceState
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.target, d.actual, d.changed = s.Target, s.Actual, s.Changed
	return nil
}
