package wire

// Attach mounts what the host has put into the board's empty places, before the workload runs.
type Attach struct {
	Attachments []Attachment `msgpack:"attachments"`
}

// Kinds of Attachment.
const (
	AttachVolume = "volume" // an ext4 file system on a virtio block device
	AttachMount  = "mount"  // a directory of the host on a virtio file system device
)

// Attachment is one file system that the host gives to the guest.
type Attachment struct {
	Slot     int    `msgpack:"slot"` // the device's place on the board, counted from 0
	Kind     string `msgpack:"kind"`
	Tag      string `msgpack:"tag,omitempty"` // of a mount's device
	Target   string `msgpack:"target"`        // where it is mounted in the workload's root; made if it is missing
	ReadOnly bool   `msgpack:"read_only,omitempty"`
	// Fresh says that the volume's file system was just made: its root gets the owner and the mode of the target.
	Fresh bool `msgpack:"fresh,omitempty"`
}

// MaxAttachments is how many an Attach has at most.
const MaxAttachments = 6
