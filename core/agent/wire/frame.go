// Package wire is the protocol between the host and the agent in the guest: msgpack frames over one byte stream, on which any number of
// requests run side by side. Either end takes the other for hostile: sizes are checked before anything is allocated.
//
// A frame is a 4-byte big-endian length and a msgpack array [type, stream, channel, body]. The client opens a stream with an Open frame;
// Data frames of a stream carry its bytes by channel and are only sent as far as the receiver's Window frames allow; the server ends
// the stream with a Result frame. Streams are numbered by the client, from 1, never reused on a connection.
package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
)

// Version is the protocol's version, exchanged in Hello. Ends of different versions do not talk.
const Version = 3

// Ports of the guest's vsock that the agent listens on.
const (
	ControlPort = 1024 // this protocol; at boot the agent also calls this port of the host, and serves there
	ProxyPort   = 1025 // one ProxyRequest frame, then the bytes of a TCP connection in the guest
)

// MaxData is the most bytes a Data frame carries, MaxBody the most bytes of any frame's body.
const (
	MaxData  = 64 << 10
	MaxBody  = 1 << 20 // an Open with arguments and environment as large as Linux takes for one string and then some
	overhead = 32      // array header, numbers and the header of the body

	maxControl = 8 << 10 // of every body that is neither Data nor an Open
)

// Type says what a frame is.
type Type uint8

const (
	TypeHello    Type = 1 + iota // both → both, stream 0, body Hello: the first frame of either end
	TypeOpen                     // client → server, body Request: starts a stream
	TypeReply                    // server → client, body Reply: the request is under way
	TypeData                     // both, raw body
	TypeEOF                      // both: no more Data on this channel
	TypeWindow                   // both, body uint32: that many more bytes may be sent on this channel
	TypeSignal                   // client → server, body Signal
	TypeResize                   // client → server, body Resize
	TypeResult                   // server → client, body Result: the stream's last frame
	TypeAbandon                  // client → server: the client is no longer interested; the server kills and forgets
	TypeStopping                 // server → client, stream 0, body Stopping: the guest is going down
	lastType     = TypeStopping
)

// Channels of a stream.
const (
	ChannelIn  = 0 // client → server: stdin, contents of a file to write, an archive
	ChannelOut = 1 // server → client: stdout, terminal, contents of a file, an archive, records
	ChannelErr = 2 // server → client: stderr
	channels   = 3
)

// Frame is one unit of the protocol.
type Frame struct {
	Type    Type
	Stream  uint32
	Channel uint8
	Body    []byte

	buf *buffer // what Body lies in, if it came from the pool
}

// ErrProtocol is matched (errors.Is) by every error about a peer that breaks the protocol.
var ErrProtocol = errors.New("agent protocol violated")

// Reader reads frames.
type Reader struct {
	r *bufio.Reader
}

// NewReader returns a Reader over r.
func NewReader(r io.Reader) *Reader { return &Reader{bufio.NewReaderSize(r, 64<<10)} }

// Read returns the next frame; its body is the caller's, or the Inbox's that it is put into. io.EOF means that the peer ended between two
// frames.
func (r *Reader) Read() (Frame, error) {
	var header [4]byte
	if _, err := io.ReadFull(r.r, header[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > MaxBody+overhead {
		return Frame{}, fmt.Errorf("%w: frame of %d bytes, at most %d are allowed", ErrProtocol, n, MaxBody+overhead)
	}
	b, buf, err := r.body(int(n))
	if err != nil {
		return Frame{}, err
	}
	f, err := parse(b)
	if buf != nil && f.Type != TypeData {
		f.Body, buf = bytes.Clone(f.Body), buf.release()
	}
	f.buf = buf
	return f, err
}

// buffer holds a large Data frame. They are used again: a stream at full speed must not keep the garbage collector busy.
type buffer [MaxData + overhead]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// release gives the buffer back; its contents must not be used any more.
func (b *buffer) release() *buffer {
	if b != nil {
		buffers.Put(b)
	}
	return nil
}

func (r *Reader) body(n int) ([]byte, *buffer, error) {
	if n <= MaxData+overhead {
		var buf *buffer
		var b []byte
		if n > MaxData/2 { // a smaller one is not worth the whole buffer that it would occupy in an Inbox
			buf = buffers.Get().(*buffer)
			b = buf[:n]
		} else {
			b = make([]byte, n)
		}
		_, err := io.ReadFull(r.r, b)
		return b, buf, noEOF(err)
	}
	b, err := io.ReadAll(io.LimitReader(r.r, int64(n))) // grows with what really arrives: a length alone costs nothing
	if err == nil && len(b) < n {
		err = io.ErrUnexpectedEOF
	}
	return b, nil, err
}

// ReadUnbuffered reads one small frame from r and not a byte past it.
func ReadUnbuffered(r io.Reader) (Frame, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > maxControl+overhead {
		return Frame{}, fmt.Errorf("%w: frame of %d bytes where a small one is due", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return Frame{}, noEOF(err)
	}
	return parse(b)
}

// noEOF turns an end inside a frame into an error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parse decodes what follows a frame's length. It is written out, as it runs for every chunk of every stream.
func parse(b []byte) (Frame, error) {
	var f Frame
	p := parser{b: b}
	if p.byte() != 0x94 { // array of four
		return f, fmt.Errorf("%w: not a frame", ErrProtocol)
	}
	kind, stream, channel := p.uint(), p.uint(), p.uint()
	f.Body = p.bin()
	if p.bad || len(p.b) != 0 {
		return f, fmt.Errorf("%w: malformed frame", ErrProtocol)
	}
	if kind < uint64(TypeHello) || kind > uint64(lastType) || stream > 1<<32-1 || channel >= channels {
		return f, fmt.Errorf("%w: frame of type %d on stream %d, channel %d", ErrProtocol, kind, stream, channel)
	}
	f.Type, f.Stream, f.Channel = Type(kind), uint32(stream), uint8(channel)
	if n := len(f.Body); n > maxBody(f.Type) || f.Type == TypeData && n == 0 {
		return f, fmt.Errorf("%w: a body of %d bytes in a frame of type %d", ErrProtocol, n, f.Type)
	}
	return f, nil
}

func maxBody(t Type) int {
	switch t {
	case TypeOpen:
		return MaxBody
	case TypeData:
		return MaxData
	}
	return maxControl
}

// parser takes msgpack integers and binaries off the front of b; bad is set at the first that is neither.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) take(n int) []byte {
	if n > len(p.b) {
		p.bad, p.b = true, nil
		return make([]byte, 8)
	}
	out := p.b[:n:n]
	p.b = p.b[n:]
	return out
}

func (p *parser) byte() byte { return p.take(1)[0] }

func (p *parser) uint() uint64 {
	switch c := p.byte(); {
	case c < 0x80:
		return uint64(c)
	case c == 0xcc:
		return uint64(p.byte())
	case c == 0xcd:
		return uint64(binary.BigEndian.Uint16(p.take(2)))
	case c == 0xce:
		return uint64(binary.BigEndian.Uint32(p.take(4)))
	}
	p.bad = true
	return 0
}

func (p *parser) bin() []byte {
	var n uint64
	switch p.byte() {
	case 0xc4:
		n = uint64(p.byte())
	case 0xc5:
		n = uint64(binary.BigEndian.Uint16(p.take(2)))
	case 0xc6:
		n = uint64(binary.BigEndian.Uint32(p.take(4)))
	default:
		p.bad = true
	}
	if n > uint64(len(p.b)) {
		p.bad = true
	}
	if p.bad {
		return nil
	}
	return p.take(int(n))
}

// ErrTooLarge means that a request does not fit into a frame.
var ErrTooLarge = errors.New("request is too large")

// Decode decodes a frame's body. Unknown keys are ignored, so that either end may learn new ones.
func Decode(f Frame, into any) error {
	if err := unmarshal(f.Body, into); err != nil {
		return fmt.Errorf("%w: body of a frame of type %d: %v", ErrProtocol, f.Type, err)
	}
	return nil
}

// unmarshal decodes what the peer sent. The library panics at some of what it does not expect, such as a nil in the place of a time; no peer shall
// end this process with that.
func unmarshal(b []byte, into any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return msgpack.Unmarshal(b, into)
}
