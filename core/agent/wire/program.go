package wire

import (
	"math"
	"time"
)

// Rlimit is a resource limit of one program (setrlimit(2)).
type Rlimit struct {
	Name string `msgpack:"name"` // without RLIMIT_ and in small letters, such as "nofile"
	Soft uint64 `msgpack:"soft"` // in the resource's own unit; Unlimited for none
	Hard uint64 `msgpack:"hard"` // what the program may raise Soft to
}

// Unlimited is the value of a limit that does not limit.
const Unlimited = math.MaxUint64

// Attach follows a detached program: the output that the guest has kept, then what comes, then the program's result. Any number of streams may
// do so at once. The program does not wait for one that is slow; Result.Lost says what it has missed. Signals and sizes sent on the stream go to
// the program. Abandoning the stream ends the following alone.
type Attach struct {
	ID    uint64 `msgpack:"id"`              // Reply.ID of the exec
	Stdin bool   `msgpack:"stdin,omitempty"` // what the client sends on ChannelIn goes to the program, if it was started with Exec.Stdin
}

// Detach makes a program run on by itself, as if it had been started with Exec.Detach: its stream ends with Result.Detached after all output up to then.
type Detach struct {
	ID uint64 `msgpack:"id"` // Reply.ID of the exec
}

// Program describes an exec that runs, or a detached one that has ended and whose result nobody has taken yet.
type Program struct {
	ID       uint64   `msgpack:"id"`
	PID      int      `msgpack:"pid"`                // in the workload's PID namespace
	Args     []string `msgpack:"args"`               // at most MaxListedArgs bytes of them
	ArgsCut  bool     `msgpack:"args_cut,omitempty"` // there are more
	UID      uint32   `msgpack:"uid"`
	Started  int64    `msgpack:"started"` // Unix time by the guest's clock, in nanoseconds
	Main     bool     `msgpack:"main,omitempty"`
	Detached bool     `msgpack:"detached,omitempty"`
	TTY      bool     `msgpack:"tty,omitempty"`
	Ended    bool     `msgpack:"ended,omitempty"`
	Code     int      `msgpack:"code,omitempty"`   // once Ended: exit status
	Signal   int      `msgpack:"signal,omitempty"` // once Ended: the signal that ended it, if one did
}

// StartTime returns when the program was started, by the guest's clock.
func (p *Program) StartTime() time.Time { return time.Unix(0, p.Started) }

// Bounds on a List.
const (
	MaxListed     = 4096    // programs
	MaxListedArgs = 4 << 10 // bytes of Program.Args, with their overhead
)
