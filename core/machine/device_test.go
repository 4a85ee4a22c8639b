package machine

import "github.com/supermachine/supermachine/core/virtio"

// idleDevice is a device that no driver ever activates.
type idleDevice struct{}

func (idleDevice) ID() uint32                 { return virtio.IDRNG }
func (idleDevice) Features() uint64           { return 0 }
func (idleDevice) QueueSizes() []uint16       { return []uint16{8, 8} }
func (idleDevice) ReadConfig(uint64, []byte)  {}
func (idleDevice) WriteConfig(uint64, []byte) {}
func (idleDevice) Activate(*virtio.Env) error { return nil }
func (idleDevice) Notify(int)                 {}
func (idleDevice) Reset()                     {}
func (idleDevice) Close() error               { return nil }
