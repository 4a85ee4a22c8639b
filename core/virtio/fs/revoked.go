package fs

import (
	"encoding/binary"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

// revoked is a mount of which nothing is left: every request fails.
type revoked struct{}

// NewRevoked returns a device that stands in for one with the saved state, so that a guest that still has the directory mounted can let go of
// it. The state may come from a hostile file.
func NewRevoked(b []byte) (*Device, error) {
	var s state
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("file system device: %w", err)
	}
	return New(Config{Tag: s.Tag, NewSession: func() Handler { return revoked{} }})
}

// The headers of FUSE (include/uapi/linux/fuse.h).
const (
	inHeader  = 40 // struct fuse_in_header: length, opcode, unique at 8
	outHeader = 16 // struct fuse_out_header: length, error, unique
)

// Handle implements Handler. A request that wants no answer has no room for one.
func (revoked) Handle(in, out [][]byte) int {
	var request [inHeader]byte
	var reply [outHeader]byte
	if gather(request[:], in) < inHeader || size(out) < outHeader {
		return 0
	}
	notConnected := int32(unix.ENOTCONN)
	binary.LittleEndian.PutUint32(reply[0:], outHeader)
	binary.LittleEndian.PutUint32(reply[4:], uint32(-notConnected))
	copy(reply[8:], request[8:16])
	rest := reply[:]
	for _, b := range out {
		rest = rest[copy(b, rest):]
	}
	return outHeader
}

// Close implements Handler.
func (revoked) Close() {}

// gather fills p from the beginning of bufs and returns how many bytes there were.
func gather(p []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += copy(p[n:], b)
	}
	return n
}

func size(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}
