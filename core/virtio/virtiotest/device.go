package virtiotest

import "github.com/supermachine/supermachine/core/virtio"

// Nothing is a device that does nothing, with one queue, for tests to embed and override.
type Nothing struct{}

// ID is one that virtio does not assign.
func (Nothing) ID() uint32                    { return 0xfe }
func (Nothing) Features() uint64              { return 0 }
func (Nothing) QueueSizes() []uint16          { return []uint16{16} }
func (Nothing) ReadConfig(_ uint64, p []byte) { clear(p) }
func (Nothing) WriteConfig(uint64, []byte)    {}
func (Nothing) Activate(*virtio.Env) error    { return nil }
func (Nothing) Notify(int)                    {}
func (Nothing) Reset()                        {}
func (Nothing) Close() error                  { return nil }
