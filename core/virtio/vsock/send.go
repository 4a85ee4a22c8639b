package vsock

import "github.com/supermachine/supermachine/core/virtio"

// pump sends what waits, as long as the guest has receive buffers.
func (d *Device) pump() {
	if !d.live() {
		return
	}
	q := d.env.Queues[rxQueue]
	for d.waiting() {
		chain, ok, err := q.Pop()
		if err != nil {
			d.fail(err)
			return
		}
		if !ok {
			d.flushReceived()
			if q.EnableNotify() {
				continue
			}
			return // Notify comes when the guest adds buffers
		}
		n, err := d.send(chain)
		q.Push(chain.Head, uint32(n))
		if err != nil {
			d.fail(err)
			return
		}
	}
	d.flushReceived()
	q.DisableNotify()
}

// waiting reports whether a packet can be sent. Writers that can send nothing now leave their line.
func (d *Device) waiting() bool {
	if d.resets.len() > 0 || d.control.first != nil {
		return true
	}
	for c := d.writers.first; c != nil; c = d.writers.first {
		if c.canSend() {
			return true
		}
		d.writers.remove(c)
	}
	return false
}

// send writes the next packet into a receive buffer and returns its length.
func (d *Device) send(chain *virtio.Chain) (int, error) {
	if chain.WriteLen < headerSize {
		return 0, virtio.DriverErrorf("socket receive buffer of %d bytes, less than a header", chain.WriteLen)
	}
	var h header
	var data []byte
	switch {
	case d.resets.len() > 0:
		r := d.resets.pop()
		h = header{srcCID: r.cid, dstCID: d.cid, srcPort: r.key.host, dstPort: r.key.guest, kind: r.kind, op: opRST}
	case d.control.first != nil:
		c := d.control.first
		if h = c.controlPacket(); c.wants == 0 {
			d.control.remove(c)
		}
	default:
		if chain.WriteLen == headerSize {
			return 0, virtio.DriverErrorf("socket receive buffer of %d bytes, without room for data", chain.WriteLen)
		}
		c := d.writers.first
		data = c.pending[:min(uint64(c.credit()), chain.WriteLen-headerSize, uint64(len(c.pending)))]
		h = c.header(opRW)
		h.len = uint32(len(data))
		scatter(chain.Writable, headerSize, data)
		c.txCount += h.len
		c.pending = c.pending[len(data):]
		d.writers.remove(c)
		if len(c.pending) > 0 {
			d.writers.add(c) // the next one's turn
		} else {
			c.wakeWriter()
		}
	}
	h.encode(&d.packet)
	scatter(chain.Writable, 0, d.packet[:])
	return headerSize + len(data), nil
}
