// Package link is what the two halves of the testbed say to each other: the host's command and the init of the emulated host.
//
// Two virtio-serial ports carry frames of one byte kind, four bytes length (big endian) and that many bytes. The port Control
// carries everything but the command's standard input, which has the port Stdin to itself: a command that does not read must not
// hold up a signal.
package link

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// The names of the ports.
const (
	Control = "supermachine.control"
	Stdin   = "supermachine.stdin"
)

// Kind says what a frame holds.
type Kind byte

// The kinds of frames, with the direction and what they hold.
const (
	Hello  Kind = iota + 1 // to the host: nothing; the init is up and waits for Start
	Start                  // to the guest: a Command
	Began                  // to the host: nothing; the command runs
	Data                   // to the guest: standard input; empty at its end
	Stdout                 // to the host: standard output, or the terminal's output
	Stderr                 // to the host: standard error
	Signal                 // to the guest: one byte, for the command's process group
	Resize                 // to the guest: a Size
	Exit                   // to the host: a Status; the last frame
	Failed                 // to the host: why the command could not be started, as text; the last frame
	Alive                  // to the host: nothing; each CPU has run something and taken an interrupt
)

// MaxFrame is the most bytes that a frame may hold.
const MaxFrame = 16 << 20

// Command is what the emulated host runs. Strings hold any bytes, as the kernel's do.
type Command struct {
	Path     string    // executable, absolute
	Args     []string  // arguments, the first being the program's name
	Env      []string  // whole environment, NAME=value
	Dir      string    // working directory, absolute
	Shares   []string  // paths below TempDirs that are the host's nonetheless
	Umask    int       // file mode creation mask
	Files    uint64    // limit of open files, soft and hard
	Hostname string    // name of the machine
	Now      time.Time // the host's clock at sending
	Terminal *Size     // size of the terminal to make for the command; nil gives it pipes
}

// Size is the size of a terminal in characters.
type Size struct{ Rows, Columns uint16 }

// Status is how a command ended.
type Status struct {
	Code   int // exit status, if Signal is 0
	Signal int // number of the signal that ended it
}

// TempDirs are the directories that are empty and in memory in the emulated host, instead of the host's.
var TempDirs = []string{"/tmp", "/run", "/dev/shm"}

// Writer writes frames; it may be used by several goroutines.
type Writer struct {
	mu sync.Mutex
	w  io.Writer
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Bytes writes a frame that holds b. It blocks while the other half does not read.
func (w *Writer) Bytes(kind Kind, b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	frame := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(b)))
	_, err := w.w.Write(append(frame, b...))
	return err
}

// Value writes a frame that holds v in msgpack.
func (w *Writer) Value(kind Kind, v any) error {
	b, err := msgpack.Marshal(v)
	if err != nil {
		return err
	}
	return w.Bytes(kind, b)
}

// Read reads one frame. The error is io.EOF if r ends before it.
func Read(r io.Reader) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("testbed: frame of %d bytes, more than %d", n, MaxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, fmt.Errorf("testbed: frame cut short: %w", err)
	}
	return Kind(head[0]), b, nil
}

// Decode reads the value that a frame holds.
func Decode(b []byte, v any) error { return msgpack.Unmarshal(b, v) }
