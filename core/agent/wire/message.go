package wire

import "time"

// Hello opens a connection, from both ends.
type Hello struct {
	Version int `msgpack:"version"`
}

// Request starts a stream: exactly one of its fields is set.
type Request struct {
	Exec     *Exec      `msgpack:"exec,omitempty"`
	Read     *ReadFile  `msgpack:"read,omitempty"`
	Write    *WriteFile `msgpack:"write,omitempty"`
	Files    *Files     `msgpack:"files,omitempty"`
	Ping     *Empty     `msgpack:"ping,omitempty"` // answered when the container is there
	Info     *Empty     `msgpack:"info,omitempty"` // answered by Reply.Info
	Shutdown *Shutdown  `msgpack:"shutdown,omitempty"`
	Follow   *Empty     `msgpack:"follow,omitempty"` // the workload's output, kept and to come; its result is the workload's
	Attach   *Attach    `msgpack:"attach,omitempty"` // the same for any detached program
	Detach   *Detach    `msgpack:"detach,omitempty"` // detaches a program that another stream runs
	List     *Empty     `msgpack:"list,omitempty"`   // answered by Programs on ChannelOut; Result.Truncated: there are more
	Freeze   *Freeze    `msgpack:"freeze,omitempty"`
	Thaw     *Thaw      `msgpack:"thaw,omitempty"`
	Mount    *Mount     `msgpack:"mount,omitempty"`
	Ports    *Empty     `msgpack:"ports,omitempty"`   // answered by Reply.Ports
	Reverse  *Reverse   `msgpack:"reverse,omitempty"` // lasts until it is abandoned
}

// Empty is a request without parameters.
type Empty struct{}

// Exec runs a program in the workload's namespaces, in a session and process group of its own.
type Exec struct {
	Args    []string      `msgpack:"args"`              // Args[0] is looked up in PATH unless it has a slash
	Env     []string      `msgpack:"env,omitempty"`     // NAME=value, over the image's environment
	Dir     string        `msgpack:"dir,omitempty"`     // working directory; default: the image's
	User    string        `msgpack:"user,omitempty"`    // NAME|UID[:GROUP|GID]; default: the image's
	TTY     bool          `msgpack:"tty,omitempty"`     // stdin, stdout and stderr are one terminal
	Rows    uint16        `msgpack:"rows,omitempty"`    // size of the terminal
	Cols    uint16        `msgpack:"cols,omitempty"`    //
	Stdin   bool          `msgpack:"stdin,omitempty"`   // the client will send on ChannelIn; else stdin is empty
	Timeout time.Duration `msgpack:"timeout,omitempty"` // kill the process group after this; 0 = never
	Main    bool          `msgpack:"main,omitempty"`    // this is the workload: Shutdown sends it the image's stop signal
	Detach  bool          `msgpack:"detach,omitempty"`  // the result comes at once, the guest keeps the output and the result for Attach
	Limits  []Rlimit      `msgpack:"limits,omitempty"`  // set before the program's first instruction, each at most once
}

// ReadFile sends a regular file on ChannelOut. Reply.Size is its size.
type ReadFile struct {
	Path   string `msgpack:"path"`
	Offset int64  `msgpack:"offset,omitempty"` // of Files.Read: where to begin; past the end there is nothing
	Length *int64 `msgpack:"length,omitempty"` // of Files.Read: the most bytes to send; nil: to the end
}

// WriteFile creates or replaces a file, atomically, by what comes on ChannelIn until EOF. With Append or At it is not atomic.
type WriteFile struct {
	Path string `msgpack:"path"`
	Mode uint32 `msgpack:"mode"` // permission bits
	// Owner is NAME|UID[:GROUP|GID] as in Exec.User; default: root.
	Owner string `msgpack:"owner,omitempty"`
	// Append, of Files.Write, adds to the end of the file; Mode and Owner are those of a new one.
	Append bool `msgpack:"append,omitempty"`
	// At, of Files.Write, writes over the contents of an existing file from this offset on, and extends it as needed; Mode and Owner are not used.
	At *int64 `msgpack:"at,omitempty"`
}

// Shutdown stops the workload and then the guest. The result comes before the guest goes down.
type Shutdown struct {
	Grace time.Duration `msgpack:"grace"` // between the workload's stop signal and SIGKILL
}

// Freeze stops every process of the workload, so that the machine can be saved, until Thaw comes on the same connection or that
// connection ends. Connections that end meanwhile count as ended only then.
type Freeze struct {
	Lean bool `msgpack:"lean,omitempty"` // give up caches first: the memory is to be kept for long
}

// Thaw lets the workload run again.
type Thaw struct {
	// Identity is set in a copy of the guest that was frozen. It takes effect before any process runs. The programs that other connections
	// had started run on there, with nobody to write to.
	Identity *Identity `msgpack:"identity,omitempty"`
	// Mount is what the copy has of its own. What the guest that it was copied from had is gone.
	Mount Mount `msgpack:"mount"`
}

// Identity tells one copy of a guest from all others.
type Identity struct {
	ID       string    `msgpack:"id"`       // random
	Entropy  []byte    `msgpack:"entropy"`  // EntropySize random bytes
	Time     time.Time `msgpack:"time"`     // the host's clock
	Hostname string    `msgpack:"hostname"` // empty: as before
}

// EntropySize is how many random bytes an Identity has.
const EntropySize = 64

// Signal is a signal for an exec's process group, by Linux's number.
type Signal struct {
	Number int `msgpack:"number"`
}

// Resize is a new size of an exec's terminal.
type Resize struct {
	Rows uint16 `msgpack:"rows"`
	Cols uint16 `msgpack:"cols"`
}

// Window grants bytes.
type Window struct {
	Bytes uint32 `msgpack:"bytes"`
}

// Reply is the first answer to a request that has begun.
type Reply struct {
	PID  int    `msgpack:"pid,omitempty"`  // of an exec, in the workload's PID namespace
	ID   uint64 `msgpack:"id,omitempty"`   // of an exec, from 1, never given twice in a VM's life; 0 from agents that know neither limits nor IDs
	Size int64  `msgpack:"size,omitempty"` // of a file
	Mode uint32 `msgpack:"mode,omitempty"` // of a file
	Info *Info  `msgpack:"info,omitempty"`
	// Ports are the TCP ports that programs listen on, where the guest's loopback address reaches them: the oldest listener first.
	Ports []uint16 `msgpack:"ports,omitempty"`
	Port  uint16   `msgpack:"port,omitempty"` // that a Reverse listens on
	// File is the answer to a Stat.
	File *FileInfo `msgpack:"file,omitempty"`
}

// Info describes the guest.
type Info struct {
	Kernel  string        `msgpack:"kernel"`  // the kernel's release
	Uptime  time.Duration `msgpack:"uptime"`  // since the kernel started
	Running bool          `msgpack:"running"` // the workload runs
	Execs   int           `msgpack:"execs"`   // programs running, the workload among them
	CPU     time.Duration `msgpack:"cpu"`     // CPU time that the workload and all other programs have used
}

// Result ends a stream.
type Result struct {
	Error     *Error        `msgpack:"error,omitempty"`     // the request failed; the rest is unset
	Code      int           `msgpack:"code,omitempty"`      // exit status of an exec, 0 to 255
	Signal    int           `msgpack:"signal,omitempty"`    // the signal that ended it, if one did
	TimedOut  bool          `msgpack:"timed_out,omitempty"` // Exec.Timeout passed
	Truncated bool          `msgpack:"truncated,omitempty"` // a background child held the output open: what it writes later is lost
	User      time.Duration `msgpack:"user,omitempty"`      // CPU time in user mode
	System    time.Duration `msgpack:"system,omitempty"`    // CPU time in the kernel
	MaxRSS    int64         `msgpack:"max_rss,omitempty"`   // bytes
	Lost      int64         `msgpack:"lost,omitempty"`      // of Attach and Follow: bytes of output that the guest had dropped when their turn came
	Detached  bool          `msgpack:"detached,omitempty"`  // the program runs on by itself; the rest is unset
}

// Kinds of Error.
const (
	KindCommandNotFound = "command_not_found"
	KindNotExecutable   = "not_executable"
	KindNotFound        = "not_found"   // a path or a user does not exist
	KindInvalid         = "invalid"     // the request makes no sense
	KindPermission      = "permission"  // the guest's kernel says no
	KindRefused         = "refused"     // nothing listens on the port
	KindInUse           = "in_use"      // another program listens on the port
	KindNoSpace         = "no_space"    // the guest's disk is full
	KindUnavailable     = "unavailable" // the guest is going down
	KindIO              = "io"          // anything else
	KindExists          = "exists"      // the path exists already
	KindNotEmpty        = "not_empty"   // the directory is not empty
	KindLimit           = "limit"       // more than the agent or the guest's kernel takes
)

// Error is a failure in the guest.
type Error struct {
	Kind    string `msgpack:"kind"`
	Message string `msgpack:"message"`
}

func (e *Error) Error() string { return e.Message }

// Stopping announces that the guest is going down.
type Stopping struct {
	Reason string `msgpack:"reason"` // StopPowerOff or StopReboot
}

// Reasons of Stopping.
const (
	StopPowerOff = "poweroff" // by Shutdown, or because the workload powered its container off
	StopReboot   = "reboot"   // the workload rebooted its container
)

// ProxyRequest is the one frame's body on a connection to ProxyPort; a Result body answers it.
type ProxyRequest struct {
	Port uint16 `msgpack:"port"` // TCP, on the guest's loopback address
}

// Reverse listens on a TCP port of the guest's loopback address and connects everything that arrives to a vsock port of the host.
type Reverse struct {
	Port uint16 `msgpack:"port"` // 0: any that is free
	Host uint32 `msgpack:"host"`
}

// MaxPorts is how many Ports a reply has at most.
const MaxPorts = 1024

// BootConfig is what the host tells init, as the file /config.msgpack in the initramfs.
type BootConfig struct {
	Hostname   string    `msgpack:"hostname"`
	Root       string    `msgpack:"root"`        // block device of the image's EROFS file system
	Scratch    string    `msgpack:"scratch"`     // block device of the writable layer's ext4 file system
	Env        []string  `msgpack:"env"`         // the image's environment
	Dir        string    `msgpack:"dir"`         // the image's working directory
	User       string    `msgpack:"user"`        // the image's user
	StopSignal string    `msgpack:"stop_signal"` // the image's, such as "SIGTERM" or "15"
	Time       time.Time `msgpack:"time"`        // the host's clock
}

// BootConfigPath is where init finds its BootConfig.
const BootConfigPath = "/config.msgpack"

// FrozenAlready is the message of the error that a Freeze gets while another connection's has not ended.
const FrozenAlready = "the workload is frozen already"
