package block

import (
	"encoding/binary"
	"errors"

	"github.com/supermachine/supermachine/core/virtio"
)

// Request types (virtio 1.2 §5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Status bytes (virtio 1.2 §5.2.6).
const (
	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const flagUnmap = 1 // VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP

// Why a request was refused; these are the guest's mistakes, so they are not kept for Err.
var (
	errRange       = errors.New("range outside the disk or not in whole sectors")
	errUnsupported = errors.New("request not supported")
)

// serve does one request and writes its status. The framing is free (virtio 1.2 §2.7.4.1): the header is the first bytes that
// can be read, the status the last byte that can be written, and the data is what lies between. An error means that the chain
// is not a request.
func (d *Device) serve(c *virtio.Chain) (written uint32, err error) {
	if c.ReadLen < headerBytes || c.WriteLen < 1 {
		return 0, virtio.DriverErrorf("block request with %d bytes to read and %d to write", c.ReadLen, c.WriteLen)
	}
	d.data.reset(c.Readable, 0, headerBytes)
	d.data.copyOut(d.header[:])
	in, out := int64(c.WriteLen-1), int64(c.ReadLen-headerBytes)

	// §2.7.8.2: the used length counts bytes from the first writable one, all of them written.
	n, err := d.do(c, in, out)
	written = uint32(min(n+1, 1<<32-1))
	status := byte(statusOK)
	switch {
	case err == nil:
	case errors.Is(err, errUnsupported):
		status = statusUnsupp
	default:
		status = statusIOErr
		if !errors.Is(err, errRange) && !errors.Is(err, ErrReadOnly) {
			kept := err // err itself must stay off the heap
			d.failed.Store(&kept)
		}
	}
	if n < in {
		written = uint32(n)
	}
	last := c.Writable[len(c.Writable)-1]
	last[len(last)-1] = status
	return written, nil
}

// do carries out the request and returns how many bytes of the in bytes before the status it wrote.
func (d *Device) do(c *virtio.Chain, in, out int64) (int64, error) {
	kind := binary.LittleEndian.Uint32(d.header[0:])
	sector := binary.LittleEndian.Uint64(d.header[8:])
	switch kind {
	case typeIn:
		off, err := d.bounds(sector, in)
		if err != nil {
			return 0, err
		}
		d.data.reset(c.Writable, 0, in)
		if err := d.backend.ReadV(&d.data, off, in); err != nil {
			return 0, err
		}
		d.stats.reads.Add(1)
		d.stats.readBytes.Add(uint64(in))
		return in, nil
	case typeOut:
		off, err := d.bounds(sector, out)
		if err != nil {
			return 0, err
		}
		return 0, d.write(c, off, out)
	case typeFlush:
		d.stats.flushes.Add(1)
		return 0, d.backend.Flush()
	case typeGetID:
		d.data.reset(c.Writable, 0, in)
		return int64(d.data.copyIn(d.serial[:])), nil
	case typeDiscard, typeWriteZeroes:
		return 0, d.discard(c, kind, out)
	}
	return 0, errUnsupported
}

func (d *Device) write(c *virtio.Chain, off, n int64) error {
	if d.backend.ReadOnly() {
		return ErrReadOnly // §5.2.6.2: fails without writing
	}
	d.data.reset(c.Readable, headerBytes, n)
	if err := d.backend.WriteV(&d.data, off, n); err != nil {
		return err
	}
	d.stats.writes.Add(1)
	d.stats.writtenBytes.Add(uint64(n))
	return d.settle()
}

// settle makes a change durable at once for a driver that cannot ask for it (§5.2.6.2: without FLUSH writes are stable when
// they are reported).
func (d *Device) settle() error {
	if d.env.Has(FeatureFlush) {
		return nil
	}
	return d.backend.Flush()
}

// bounds checks a range of n bytes and returns its offset in bytes.
func (d *Device) bounds(sector uint64, n int64) (int64, error) {
	if n%SectorSize != 0 || n > d.size || sector > uint64(d.size-n)/SectorSize {
		return 0, errRange
	}
	return int64(sector) * SectorSize, nil
}

// discard does a discard or write-zeroes request: a list of ranges (virtio 1.2 §5.2.6), all of them checked before the first.
func (d *Device) discard(c *virtio.Chain, kind uint32, n int64) error {
	feature := FeatureDiscard
	if kind == typeWriteZeroes {
		feature = FeatureWriteZeroes
	}
	if !d.env.Has(feature) {
		return errUnsupported
	}
	if n == 0 || n%rangeBytes != 0 || n > int64(len(d.ranges)) {
		return errRange
	}
	list := d.ranges[:n]
	d.data.reset(c.Readable, headerBytes, n)
	d.data.copyOut(list)
	for r := list; len(r) > 0; r = r[rangeBytes:] {
		flags := binary.LittleEndian.Uint32(r[12:])
		if flags&^flagUnmap != 0 || (kind == typeDiscard && flags != 0) {
			return errUnsupported // §5.2.6.2
		}
		sectors := binary.LittleEndian.Uint32(r[8:])
		if sectors > maxRangeSectors {
			return errRange
		}
		if _, err := d.bounds(binary.LittleEndian.Uint64(r), int64(sectors)*SectorSize); err != nil {
			return err
		}
	}
	for r := list; len(r) > 0; r = r[rangeBytes:] {
		off := int64(binary.LittleEndian.Uint64(r)) * SectorSize
		size := int64(binary.LittleEndian.Uint32(r[8:])) * SectorSize
		var err error
		if kind == typeDiscard {
			err = d.backend.Discard(off, size)
		} else {
			err = d.backend.WriteZeroes(off, size, binary.LittleEndian.Uint32(r[12:])&flagUnmap != 0)
		}
		if err != nil {
			return err
		}
	}
	return d.settle()
}
