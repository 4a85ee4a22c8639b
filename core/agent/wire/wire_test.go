package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
)

// encode returns the frames as a Writer writes them.
func encode(t require.TestingT, frames ...Frame) *bytes.Buffer {
	var b bytes.Buffer
	w := NewWriter(&b, nil)
	require.NoError(t, w.Write(nil, frames...))
	require.True(t, w.Flush(nil))
	return &b
}

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	frames := []Frame{
		{Type: TypeHello, Body: []byte{1}},
		{Type: TypeData, Stream: 1<<32 - 1, Channel: ChannelErr, Body: bytes.Repeat([]byte("x"), MaxData)},
		{Type: TypeOpen, Stream: 7, Body: bytes.Repeat([]byte("y"), MaxBody)},
		{Type: TypeEOF, Stream: 7, Channel: ChannelIn, Body: []byte{}},
	}
	r := NewReader(encode(t, frames...))
	for _, want := range frames {
		got, err := r.Read()
		require.NoError(t, err)
		got.buf = nil
		require.Equal(t, want, got)
	}
	_, err := r.Read()
	require.Equal(t, io.EOF, err)
}

// The hand-written parser takes what any msgpack library writes.
func TestFramesAreMsgpack(t *testing.T) {
	b := encode(t, Frame{Type: TypeData, Stream: 300, Channel: ChannelOut, Body: []byte("hello")})
	var fields []any
	require.NoError(t, msgpack.Unmarshal(b.Bytes()[4:], &fields))
	require.Len(t, fields, 4)
	require.EqualValues(t, 300, fields[1])
	require.Equal(t, []byte("hello"), fields[3])

	compact, err := msgpack.Marshal([]any{uint8(TypeData), uint16(300), uint8(1), []byte("hello")})
	require.NoError(t, err)
	f, err := parse(compact)
	require.NoError(t, err)
	require.Equal(t, Frame{Type: TypeData, Stream: 300, Channel: ChannelOut, Body: []byte("hello")}, f)
}

func TestBrokenFramesAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"huge length":     {0xff, 0xff, 0xff, 0xff},
		"nothing":         {0, 0, 0, 0},
		"not an array":    {0, 0, 0, 1, 0xc0},
		"short array":     {0, 0, 0, 2, 0x94, 4},
		"unknown type":    {0, 0, 0, 6, 0x94, 99, 0, 0, 0xc4, 0},
		"unknown channel": {0, 0, 0, 6, 0x94, 4, 0, 9, 0xc4, 0},
		"body too short":  {0, 0, 0, 6, 0x94, 4, 0, 0, 0xc4, 9},
		"trailing bytes":  {0, 0, 0, 8, 0x94, 4, 0, 0, 0xc4, 1, 0, 0},
		"empty data":      {0, 0, 0, 6, 0x94, 4, 0, 0, 0xc4, 0},
		"fat window":      encode(t, Frame{Type: TypeWindow, Body: make([]byte, maxControl)}).Bytes(),
	} {
		if name == "fat window" {
			b = append(appendFrame(nil, Frame{Type: TypeWindow, Body: make([]byte, maxControl+1)}), b...)
		}
		_, err := NewReader(bytes.NewReader(b)).Read()
		require.ErrorIs(t, err, ErrProtocol, name)
	}
	_, err := NewReader(bytes.NewReader([]byte{0, 0, 0, 9, 1})).Read()
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = ReadUnbuffered(bytes.NewReader([]byte{0, 1, 0, 0}))
	require.ErrorIs(t, err, ErrProtocol)
}

func TestTooLargeRequestsAreRefusedBeforeTheyAreSent(t *testing.T) {
	w := NewWriter(io.Discard, nil)
	require.ErrorIs(t, w.Write(nil, Frame{Type: TypeOpen, Body: make([]byte, MaxBody+1)}), ErrTooLarge)
	require.NoError(t, w.Write(nil, Frame{Type: TypeOpen, Body: make([]byte, MaxBody)}), "the writer is still good")
}

func TestMessagesRoundTrip(t *testing.T) {
	want := Request{Exec: &Exec{Args: []string{"a"}, Env: []string{"X=\xff\n"}, Timeout: time.Second, Rows: 24}}
	var b bytes.Buffer
	w := NewWriter(&b, nil)
	require.NoError(t, w.Send(nil, TypeOpen, 1, 0, want))
	w.Flush(nil)
	f, err := NewReader(&b).Read()
	require.NoError(t, err)
	var got Request
	require.NoError(t, Decode(f, &got))
	require.Equal(t, want, got)
}

// A peer that does not read holds up only who has nothing to give up for.
func TestAWriterDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	host, guest := net.Pipe()
	failed := make(chan error, 1)
	w := NewWriter(host, func(err error) { failed <- err })
	body := make([]byte, MaxData)
	done := make(chan struct{})
	close(done)
	var err error
	for range 2*maxQueue/MaxData + 2 {
		if err = w.Write(done, Frame{Type: TypeData, Body: body}); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, ErrCanceled)
	require.NoError(t, w.Post(Frame{Type: TypeAbandon, Stream: 1}))
	require.False(t, w.Flush(done))

	blocked := make(chan error)
	go func() {
		for {
			if err := w.Write(nil, Frame{Type: TypeData, Body: body}); err != nil {
				blocked <- err
				return
			}
		}
	}()
	guest.Close()
	require.Error(t, <-blocked, "the end of the connection ends the waiting")
	require.Error(t, <-failed)
	require.True(t, w.Flush(nil))
}

func data(n int) Frame { return Frame{Type: TypeData, Body: bytes.Repeat([]byte("z"), n)} }

func TestInboxGrantsWhatWasRead(t *testing.T) {
	var granted uint32
	i := NewInbox(func(n uint32) { granted += n })
	for range InitialWindow / MaxData {
		require.NoError(t, i.Put(data(MaxData)))
	}
	require.ErrorIs(t, i.Put(data(1)), ErrProtocol, "the window is used up")
	_, err := io.ReadFull(i, make([]byte, InitialWindow))
	require.NoError(t, err)
	require.EqualValues(t, InitialWindow, granted)
	require.NoError(t, i.Put(data(3)))
	i.Close(nil)
	i.Close(errors.New("too late"))
	b, err := io.ReadAll(i)
	require.NoError(t, err)
	require.Equal(t, "zzz", string(b))
}

// Many tiny frames must not cost many times their bytes.
func TestInboxPutsSmallDataTogether(t *testing.T) {
	i := NewInbox(func(uint32) {})
	for range InitialWindow {
		require.NoError(t, i.Put(data(1)))
	}
	require.ErrorIs(t, i.Put(data(1)), ErrProtocol)
	require.Len(t, i.chunks, InitialWindow/smallChunk)
	i.Discard()
	require.Empty(t, i.chunks)
	require.NoError(t, i.Put(data(9)))
	_, err := i.Read(make([]byte, 1))
	require.Equal(t, io.ErrClosedPipe, err)
}

func TestOutboxNeverExceedsTheWindow(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b, nil)
	o := NewOutbox(w, 1, ChannelOut)
	n, err := o.Write(make([]byte, InitialWindow))
	require.NoError(t, err)
	require.Equal(t, InitialWindow, n)
	done := make(chan error)
	go func() {
		_, err := o.Write(make([]byte, 5))
		done <- err
	}()
	require.NoError(t, o.Grant(5))
	require.NoError(t, <-done)
	require.ErrorIs(t, o.Grant(InitialWindow+1), ErrProtocol)
	require.ErrorIs(t, o.Grant(0), ErrProtocol)
	go func() {
		_, err := o.Write([]byte("x"))
		done <- err
	}()
	o.Close()
	o.Close()
	require.ErrorIs(t, <-done, io.ErrClosedPipe)
}

func TestSplicePassesHalfClosesOn(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	}
	front, back := listen(), listen()
	spliced := make(chan struct{})
	go func() {
		a, err := front.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", back.Addr().String())
		if err != nil {
			return
		}
		Splice(a, b)
		close(spliced)
	}()
	go func() { // a server that answers when the request has ended
		c, err := back.Accept()
		if err != nil {
			return
		}
		request, _ := io.ReadAll(c)
		c.Write(append([]byte("got "), request...))
		c.Close()
	}()
	c, err := net.Dial("tcp", front.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	request := bytes.Repeat([]byte("r"), 1<<20)
	_, err = c.Write(request)
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, append([]byte("got "), request...), answer)
	<-spliced
}

func FuzzReadFrame(f *testing.F) {
	open, err := msgpack.Marshal(Request{Exec: &Exec{Args: []string{"true"}}})
	require.NoError(f, err)
	f.Add(encode(f, Frame{Type: TypeOpen, Stream: 1, Body: open}, Frame{Type: TypeData, Stream: 1, Channel: 2, Body: []byte("data")}).Bytes())
	for _, req := range []Request{
		{Ports: &Empty{}}, {Reverse: &Reverse{Port: 80, Host: 1 << 16}},
		{Mount: &Mount{FileSystems: []FileSystem{{Slot: 7, Kind: FSVolume, Target: "/data", Fresh: true}}}},
		{Freeze: &Freeze{Lean: true}}, {Follow: &Empty{}}, {Exec: &Exec{Args: []string{"true"}, Main: true, Detach: true}},
		{Exec: &Exec{Args: []string{"true"}, Detach: true, Stdin: true, Limits: []Rlimit{{"nofile", 1, Unlimited}, {"", 2, 1}}}},
		{Attach: &Attach{ID: 1<<64 - 1, Stdin: true}}, {Detach: &Detach{ID: 1}}, {List: &Empty{}},
		{Thaw: &Thaw{Identity: &Identity{ID: "x", Entropy: make([]byte, EntropySize), Time: time.Unix(1, 2), Hostname: "h"}}},
	} {
		body, err := msgpack.Marshal(req)
		require.NoError(f, err)
		f.Add(encode(f, Frame{Type: TypeOpen, Stream: 2, Body: body}).Bytes())
	}
	f.Add([]byte{0, 0, 0, 7, 0x94, 4, 0, 0, 0xc4, 1, 0})
	f.Add([]byte{0, 0, 0, 9, 0x94, 2, 1, 0, 0xc4, 3, 0xdf, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		for {
			frame, err := r.Read()
			if err != nil {
				return
			}
			bodies := []any{new(Hello), new(Reply), new(Result), new(Window), new(Signal), new(Resize), new(Stopping)}
			if frame.Type == TypeOpen {
				bodies = []any{new(Request), new(ProxyRequest)}
			}
			for _, into := range bodies {
				Decode(frame, into)
			}
			again, err := NewReader(encode(t, frame)).Read()
			require.NoError(t, err)
			require.Equal(t, len(frame.Body), len(again.Body))
		}
	})
}

func TestProgramsComeOutAsTheyWentIn(t *testing.T) {
	want := &Program{
		ID: 1<<64 - 1, PID: 7, Args: []string{"a", "", "\xff"}, ArgsCut: true, UID: 1<<32 - 1, Started: 3, Main: true, Detached: true, TTY: true,
		Ended: true, Code: 137, Signal: 9,
	}
	full := Program{Args: []string{string(make([]byte, MaxListedArgs))}}
	r := NewRecordReader(bytes.NewReader(records(t, want, &full)))
	var got Program
	require.NoError(t, r.Read(&got))
	require.Equal(t, time.Unix(0, 3), got.StartTime())
	require.Equal(t, want, &got)
	require.NoError(t, r.Read(&got), "as large as it may be")
}

// Some of what the decoder does not expect makes it panic, which is the peer's fault and not our end.
func TestDecodersThatPanicAreErrors(t *testing.T) {
	b := append([]byte{0x81, 0xa4}, "time\xc0"...)
	require.ErrorIs(t, Decode(Frame{Type: TypeReply, Body: b}, new(Identity)), ErrProtocol)
}

func FuzzParseSignal(f *testing.F) {
	for _, name := range []string{"TERM", "sigterm", "15", "RTMIN+3", "RTMAX-1", "", "RTMIN+99999999999999999999"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if n, ok := ParseSignal(name); ok && (n < 1 || n > MaxSignal) {
			t.Error(n)
		}
	})
}
