// Package block is the virtio block device (virtio 1.2 §5.2) and the disks behind it: raw files and copy-on-write overlays.
package block

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/rate"
)

// Feature bits (virtio 1.2 §5.2.3).
const (
	FeatureSizeMax     uint64 = 1 << 1
	FeatureSegMax      uint64 = 1 << 2
	FeatureReadOnly    uint64 = 1 << 5
	FeatureBlkSize     uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureTopology    uint64 = 1 << 10
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
)

const (
	// DefaultQueueSize is the queue's size unless Config says otherwise.
	DefaultQueueSize = 256

	// SerialSize is the most bytes that a serial has (virtio 1.2 §5.2.6).
	SerialSize = 20

	maxQueueSize     = 1024
	sizeMax          = 1 << 20 // bytes in one descriptor
	maxRangeSectors  = 1 << 21 // sectors in one discard or write-zeroes range: 1 GiB
	maxRanges        = 16      // ranges in one discard or write-zeroes request
	rangeBytes       = 16      // struct virtio_blk_discard_write_zeroes
	headerBytes      = 16      // type, reserved, sector
	configBytes      = 60      // struct virtio_blk_config up to write_zeroes_may_unmap and its padding
	physicalBlockExp = 3       // 4 KiB: what the guest should align to

	// What limits let through at once.
	minBurstBytes    = 256 << 10
	minBurstRequests = 8
)

// Config says what New makes.
type Config struct {
	Backend   Backend // the disk; the device closes it
	Serial    string  // at most SerialSize bytes; the guest reads it as /sys/block/*/serial
	QueueSize uint16  // a power of two from 4 to 1024; 0 means DefaultQueueSize

	// What is read and written, and requests, per second; 0 for no limit. What exceeds them waits in the guest's queue.
	BytesPerSecond, RequestsPerSecond int64
}

// Device is a virtio block device with one queue. Requests are served one after another in Notify, on the caller's goroutine, by
// system calls straight between file and guest memory: with the data in the page cache that is faster than any hand-over, and
// each is reported as soon as it is done. A slow disk delays the requests behind it, never a vCPU.
type Device struct {
	backend Backend
	size    int64
	serial  [SerialSize]byte
	queue   uint16
	config  [configBytes]byte
	env     *virtio.Env
	failed  atomic.Pointer[error]
	stats   counters
	limited bool
	bytes   rate.Bucket
	ops     rate.Bucket

	// Storage for one request, kept so that requests allocate nothing.
	data   Vec
	header [headerBytes]byte
	ranges [maxRanges * rangeBytes]byte
}

// New returns the device. It fails if the configuration cannot be used; the backend then still belongs to the caller.
func New(c Config) (*Device, error) {
	if c.QueueSize == 0 {
		c.QueueSize = DefaultQueueSize
	}
	if c.QueueSize < 4 || c.QueueSize > maxQueueSize || c.QueueSize&(c.QueueSize-1) != 0 {
		return nil, fmt.Errorf("block device: queue size %d is not a power of two from 4 to %d", c.QueueSize, maxQueueSize)
	}
	if len(c.Serial) > SerialSize {
		return nil, fmt.Errorf("block device: serial %q is longer than %d bytes", c.Serial, SerialSize)
	}
	d := &Device{backend: c.Backend, size: c.Backend.Size(), queue: c.QueueSize}
	d.limited = c.BytesPerSecond > 0 || c.RequestsPerSecond > 0
	d.bytes, d.ops = rate.New(c.BytesPerSecond, minBurstBytes), rate.New(c.RequestsPerSecond, minBurstRequests)
	if err := checkSize("of the block device", d.size); err != nil {
		return nil, err
	}
	copy(d.serial[:], c.Serial)
	le, cfg := binary.LittleEndian, d.config[:]
	le.PutUint64(cfg[0:], uint64(d.size/SectorSize)) // capacity
	le.PutUint32(cfg[8:], sizeMax)                   // size_max
	le.PutUint32(cfg[12:], uint32(c.QueueSize-2))    // seg_max: without header and status
	le.PutUint32(cfg[20:], SectorSize)               // blk_size
	cfg[24] = physicalBlockExp                       // topology
	le.PutUint16(cfg[26:], 1<<physicalBlockExp)      // min_io_size, in blocks
	le.PutUint16(cfg[34:], 1)                        // num_queues
	le.PutUint32(cfg[36:], maxRangeSectors)          // max_discard_sectors
	le.PutUint32(cfg[40:], maxRanges)                // max_discard_seg
	le.PutUint32(cfg[44:], ClusterSize/SectorSize)   // discard_sector_alignment
	le.PutUint32(cfg[48:], maxRangeSectors)          // max_write_zeroes_sectors
	le.PutUint32(cfg[52:], maxRanges)                // max_write_zeroes_seg
	cfg[56] = 1                                      // write_zeroes_may_unmap
	return d, nil
}

// Backend returns the disk. It must not be changed while the device is active and not paused.
func (d *Device) Backend() Backend { return d.backend }

// Stats are the requests that a device has served since it was made.
type Stats struct {
	Reads, Writes, Flushes  uint64 // requests
	ReadBytes, WrittenBytes uint64
}

type counters struct{ reads, writes, flushes, readBytes, writtenBytes atomic.Uint64 }

// Stats returns what the device has done so far. It may be called at any time.
func (d *Device) Stats() Stats {
	c := &d.stats
	return Stats{c.reads.Load(), c.writes.Load(), c.flushes.Load(), c.readBytes.Load(), c.writtenBytes.Load()}
}

// Err returns the latest error of the disk itself, such as a full host file system, or nil. The guest only sees an I/O error.
func (d *Device) Err() error {
	if p := d.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDBlock }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := FeatureSizeMax | FeatureSegMax | FeatureBlkSize | FeatureTopology
	if d.backend.ReadOnly() {
		return f | FeatureReadOnly
	}
	return f | FeatureFlush | FeatureDiscard | FeatureWriteZeroes
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{d.queue} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) { virtio.ReadConfigBytes(d.config[:], off, p) }

// WriteConfig implements virtio.Device; no field can be written, since CONFIG_WCE is not offered.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.env = env
	return nil
}

// Reset implements virtio.Device. It also forgets the last request's slices: guest memory may be unmapped soon, and its addresses
// used by the Go heap, where the garbage collector takes a stale pointer for corruption.
func (d *Device) Reset() { d.env, d.data = nil, Vec{} }

// Close implements virtio.Device.
func (d *Device) Close() error { return d.backend.Close() }

// Notify implements virtio.Device.
func (d *Device) Notify(int) {
	q := d.env.Queues[0]
	for more := true; more; more = q.EnableNotify() {
		q.DisableNotify()
		for {
			c, ok, err := q.Pop()
			if err != nil {
				d.env.Fail(err)
				return
			}
			if !ok {
				break
			}
			if !d.mayServe(q) {
				q.Unpop(c)
				return
			}
			written, err := d.serve(c)
			if err != nil {
				d.env.Fail(err)
				return
			}
			d.ops.Take(1)
			d.bytes.Take(int64(max(c.ReadLen, c.WriteLen)))
			q.Push(c.Head, written)
			q.Flush()
		}
	}
}

// patience is how long a limited device sleeps at a time, and so how long it may keep a pause waiting.
const patience = 2 * time.Millisecond

// mayServe waits until the limits allow a request. It reports false when the queue yields none any more.
func (d *Device) mayServe(q *virtio.Queue) bool {
	for d.limited {
		now := time.Now()
		wait := max(d.ops.Wait(now), d.bytes.Wait(now))
		if wait == 0 {
			return true
		}
		if !q.Live() {
			return false
		}
		time.Sleep(min(wait, patience))
	}
	return true
}

// deviceState is what a restored device is checked against.
type deviceState struct {
	Size     int64
	ReadOnly bool
	Serial   [SerialSize]byte
}

// SaveState implements virtio.Stateful. The disk's content is not part of it; see Overlay.State.
func (d *Device) SaveState() ([]byte, error) {
	return msgpack.Marshal(d.state())
}

func (d *Device) state() deviceState {
	return deviceState{Size: d.size, ReadOnly: d.backend.ReadOnly(), Serial: d.serial}
}

// RestoreState implements virtio.Stateful: it fails unless this is the kind of disk that the guest knows.
func (d *Device) RestoreState(b []byte) error {
	var s deviceState
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("block device: %w", err)
	}
	if s != d.state() {
		return fmt.Errorf("block device: the guest knows a disk %+v, not %+v", s, d.state())
	}
	return nil
}
