package vsock

import "encoding/binary"

// Packet types (virtio 1.2 §5.10.6).
const typeStream = 1

// Operations (virtio 1.2 §5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown: what the sender will no longer do (virtio 1.2 §5.10.6.6).
const (
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

const (
	headerSize = 44
	maxPayload = 64 << 10 // of one packet, as Linux has it
)

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.len)
	le.PutUint16(b[28:], h.typ)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}

func (h *header) decode(b *[headerSize]byte) {
	le := binary.LittleEndian
	h.srcCID = le.Uint64(b[0:])
	h.dstCID = le.Uint64(b[8:])
	h.srcPort = le.Uint32(b[16:])
	h.dstPort = le.Uint32(b[20:])
	h.len = le.Uint32(b[24:])
	h.typ = le.Uint16(b[28:])
	h.op = le.Uint16(b[30:])
	h.flags = le.Uint32(b[32:])
	h.bufAlloc = le.Uint32(b[36:])
	h.fwdCnt = le.Uint32(b[40:])
}

// cursor walks over the bytes of a packet, which a driver may spread over descriptors as it likes.
type cursor struct {
	piece []byte
	rest  [][]byte
}

// next returns the next contiguous bytes, at most n, and moves past them; none at the end.
func (c *cursor) next(n int) []byte {
	for len(c.piece) == 0 {
		if len(c.rest) == 0 {
			return nil
		}
		c.piece, c.rest = c.rest[0], c.rest[1:]
	}
	p := c.piece[:min(n, len(c.piece))]
	c.piece = c.piece[len(p):]
	return p
}

// read fills p from the cursor and reports how many bytes there were.
func (c *cursor) read(p []byte) int {
	n := 0
	for n < len(p) {
		b := c.next(len(p) - n)
		if len(b) == 0 {
			break
		}
		n += copy(p[n:], b)
	}
	return n
}

// write puts p where the cursor is and reports how many bytes there was room for.
func (c *cursor) write(p []byte) int {
	n := 0
	for n < len(p) {
		b := c.next(len(p) - n)
		if len(b) == 0 {
			break
		}
		n += copy(b, p[n:])
	}
	return n
}
