package wire

// Mount sets up what the host has put into the board's places, before the workload runs.
type Mount struct {
	FileSystems []FileSystem `msgpack:"file_systems"`
	Network     *Network     `msgpack:"network,omitempty"`
}

// Kinds of FileSystem.
const (
	FSVolume = "volume" // ext4 on a virtio block device
	FSMount  = "mount"  // a directory of the host, on a virtio file system device
)

// FileSystem is one that the host gives to the guest.
type FileSystem struct {
	Slot     int    `msgpack:"slot"` // the device's place on the board, counted from 0
	Kind     string `msgpack:"kind"`
	Tag      string `msgpack:"tag,omitempty"` // of an FSMount's device
	Target   string `msgpack:"target"`        // where it is mounted in the workload's root; made if it is missing
	ReadOnly bool   `msgpack:"read_only,omitempty"`
	// Fresh says that a volume's file system was just made: its root gets the owner and the mode of the target.
	Fresh bool `msgpack:"fresh,omitempty"`
}

// Network is the guest's network, which the agent sets up without asking anybody.
type Network struct {
	Slot       int    `msgpack:"slot"`        // the device's place on the board, counted from 0
	Address    string `msgpack:"address"`     // the guest's, IPv4
	PrefixBits int    `msgpack:"prefix_bits"` // of the network
	Gateway    string `msgpack:"gateway"`     // and name server
	MTU        int    `msgpack:"mtu"`
}

// MaxFileSystems is how many a Mount has at most.
const MaxFileSystems = 6
