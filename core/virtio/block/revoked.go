package block

import (
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

// errRevoked is what became of a disk.
var errRevoked = errors.New("the disk was taken away")

// revoked is a disk of which nothing is left but its size.
type revoked struct {
	size     int64
	readOnly bool
}

// NewRevoked returns a device that stands in for one with the saved state: every request fails, so that a guest that still has the disk in use
// can let go of it. The state may come from a hostile file.
func NewRevoked(state []byte) (*Device, error) {
	var s deviceState
	if err := msgpack.Unmarshal(state, &s); err != nil {
		return nil, fmt.Errorf("block device: %w", err)
	}
	d, err := New(Config{Backend: revoked{s.Size, s.ReadOnly}})
	if err != nil {
		return nil, err
	}
	d.serial = s.Serial
	return d, nil
}

func (r revoked) Size() int64                        { return r.size }
func (r revoked) ReadOnly() bool                     { return r.readOnly }
func (revoked) ReadV(*Vec, int64, int64) error       { return errRevoked }
func (revoked) WriteV(*Vec, int64, int64) error      { return errRevoked }
func (revoked) Flush() error                         { return errRevoked }
func (revoked) Discard(int64, int64) error           { return errRevoked }
func (revoked) WriteZeroes(int64, int64, bool) error { return errRevoked }
func (revoked) Close() error                         { return nil }
