package net

import (
	"time"

	"github.com/supermachine/supermachine/core/virtio"
)

// transmit sends what the guest has made available, as far as the rate allows. Caller holds tx.
func (d *Device) transmit() {
	if d.tx.env == nil || d.tx.paused || d.tx.timer != nil {
		return
	}
	q := d.tx.env.Queues[txQueue]
	for more := true; more; more = q.EnableNotify() {
		q.DisableNotify()
		for {
			if wait := d.tx.rate.Wait(time.Now()); wait > 0 {
				q.Flush()
				d.startTimer(wait)
				return
			}
			c, ok, err := q.Pop()
			if err != nil {
				d.tx.env.Fail(err)
				q.Flush()
				return
			}
			if !ok {
				break
			}
			err = d.send(c)
			q.Push(c.Head, 0)
			if err != nil {
				d.tx.env.Fail(err)
				q.Flush()
				return
			}
		}
		q.Flush()
	}
}

// send passes one frame to the link.
func (d *Device) send(c *virtio.Chain) error {
	if c.ReadLen < headerBytes {
		return virtio.DriverErrorf("network frame of %d bytes, less than its header", c.ReadLen)
	}
	n := c.ReadLen - headerBytes
	// The header: a partial checksum is as good as a whole one to a link in memory, and gso_type, the second byte, must say that there is nothing to
	// segment (§5.1.6.2.1), since no such feature is offered.
	if n < ethernetBytes || n > uint64(d.mtu+ethernetBytes) || byteAt(c.Readable, 1) != 0 {
		d.droppedFrom.Add(1)
		return nil
	}
	parts, skip := d.tx.parts[:0], headerBytes
	for _, b := range c.Readable {
		k := min(skip, len(b))
		skip -= k
		if b = b[k:]; len(b) > 0 {
			parts = append(parts, b)
		}
	}
	d.tx.parts = parts
	d.tx.rate.Take(int64(n))
	d.bytesFrom.Add(n)
	d.packetsFrom.Add(1)
	d.link.Send(parts)
	return nil
}

// byteAt returns one byte of bufs, which hold more than off.
func byteAt(bufs [][]byte, off int) byte {
	for _, b := range bufs {
		if off < len(b) {
			return b[off]
		}
		off -= len(b)
	}
	return 0
}

// startTimer goes on with transmit after wait. Caller holds tx.
func (d *Device) startTimer(wait time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(wait, func() {
		d.tx.Lock()
		defer d.tx.Unlock()
		if d.tx.timer == t { // else it was stopped too late
			d.tx.timer = nil
			d.transmit()
		}
	})
	d.tx.timer = t
}

// stopTimer makes sure that no timer goes on with transmit. Caller holds tx.
func (d *Device) stopTimer() {
	if d.tx.timer != nil {
		d.tx.timer.Stop()
		d.tx.timer = nil
	}
}
