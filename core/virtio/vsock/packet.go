package vsock

import "encoding/binary"

// Packet types (virtio 1.2 §5.10.6).
const typeStream = 1

// Operations (virtio 1.2 §5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown: what the sender will no longer do (virtio 1.2 §5.10.6.6).
const (
	shutdownReceive = 1
	shutdownSend    = 2
	shutdownBoth    = shutdownReceive | shutdownSend
)

const headerSize = 44

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	kind, op         uint16
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
	le.PutUint16(b[28:], h.kind)
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
	h.kind = le.Uint16(b[28:])
	h.op = le.Uint16(b[30:])
	h.flags = le.Uint32(b[32:])
	h.bufAlloc = le.Uint32(b[36:])
	h.fwdCnt = le.Uint32(b[40:])
}

// gather copies the bytes of bufs from offset off to p and returns how many there were, at most len(p).
func gather(p []byte, bufs [][]byte, off int) int {
	n := 0
	for _, b := range bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(p[n:], b[off:])
		off = 0
	}
	return n
}

// scatter copies p into bufs from offset off. There must be room.
func scatter(bufs [][]byte, off int, p []byte) {
	for _, b := range bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		p = p[copy(b[off:], p):]
		off = 0
	}
}
