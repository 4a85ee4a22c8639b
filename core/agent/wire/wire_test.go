package wire

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
)

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	frames := []Frame{
		{TypeHello, 0, 0, []byte{1}},
		{TypeData, 1<<32 - 1, ChannelErr, bytes.Repeat([]byte("x"), MaxData)},
		{TypeOpen, 7, 0, bytes.Repeat([]byte("y"), MaxBody)},
		{TypeEOF, 7, ChannelIn, []byte{}},
	}
	var b bytes.Buffer
	require.NoError(t, NewWriter(&b).Write(frames...))
	r := NewReader(&b)
	for _, want := range frames {
		got, err := r.Read()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := r.Read()
	require.Equal(t, io.EOF, err)
}

// The hand-written parser takes what any msgpack library writes.
func TestFramesAreMsgpack(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, NewWriter(&b).Write(Frame{TypeData, 300, ChannelOut, []byte("hello")}))
	var fields []any
	require.NoError(t, msgpack.Unmarshal(b.Bytes()[4:], &fields))
	require.Len(t, fields, 4)
	require.EqualValues(t, 300, fields[1])
	require.Equal(t, []byte("hello"), fields[3])

	compact, err := msgpack.Marshal([]any{uint8(TypeData), uint16(300), uint8(1), []byte("hello")})
	require.NoError(t, err)
	f, err := parse(compact)
	require.NoError(t, err)
	require.Equal(t, Frame{TypeData, 300, ChannelOut, []byte("hello")}, f)
}

func TestBrokenFramesAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"huge length":     {0xff, 0xff, 0xff, 0xff},
		"not an array":    {0, 0, 0, 1, 0xc0},
		"short array":     {0, 0, 0, 2, 0x94, 4},
		"unknown type":    {0, 0, 0, 6, 0x94, 99, 0, 0, 0xc4, 0},
		"unknown channel": {0, 0, 0, 6, 0x94, 4, 0, 9, 0xc4, 0},
		"body too short":  {0, 0, 0, 6, 0x94, 4, 0, 0, 0xc4, 9},
		"trailing bytes":  {0, 0, 0, 7, 0x94, 4, 0, 0, 0xc4, 0, 0},
	} {
		_, err := NewReader(bytes.NewReader(b)).Read()
		require.ErrorIs(t, err, ErrProtocol, name)
	}
	_, err := NewReader(bytes.NewReader([]byte{0, 0, 0, 9, 1})).Read()
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorIs(t, NewWriter(io.Discard).Write(Frame{Type: TypeOpen, Body: make([]byte, MaxBody+1)}), ErrTooLarge)
}

func TestMessagesRoundTrip(t *testing.T) {
	want := Request{Exec: &Exec{Args: []string{"a"}, Env: []string{"X=\xff\n"}, Timeout: time.Second, Rows: 24}}
	var b bytes.Buffer
	require.NoError(t, NewWriter(&b).Send(TypeOpen, 1, 0, want))
	f, err := NewReader(&b).Read()
	require.NoError(t, err)
	var got Request
	require.NoError(t, Decode(f, &got))
	require.Equal(t, want, got)
}

func TestInboxGrantsWhatWasRead(t *testing.T) {
	var granted uint32
	i := NewInbox(func(n uint32) error { granted += n; return nil })
	chunk := bytes.Repeat([]byte("z"), MaxData)
	for range InitialWindow / MaxData {
		require.NoError(t, i.Put(chunk))
	}
	require.ErrorIs(t, i.Put([]byte("x")), ErrProtocol, "the window is used up")
	for range InitialWindow / MaxData {
		b, err := i.Next()
		require.NoError(t, err)
		require.Len(t, b, MaxData)
	}
	require.EqualValues(t, InitialWindow, granted)
	i.Close(nil)
	_, err := i.Next()
	require.Equal(t, io.EOF, err)
}

func TestOutboxNeverExceedsTheWindow(t *testing.T) {
	var b bytes.Buffer
	o := NewOutbox(NewWriter(&b), 1, ChannelOut)
	done := make(chan error)
	go func() {
		_, err := o.Write(make([]byte, InitialWindow+5))
		done <- err
	}()
	for { // the first window is sent, the rest waits
		o.mu.Lock()
		empty := o.credit == 0
		o.mu.Unlock()
		if empty {
			break
		}
	}
	require.NoError(t, o.Grant(5))
	require.NoError(t, <-done)
	require.ErrorIs(t, o.Grant(InitialWindow+1), ErrProtocol)
	o.Close()
	_, err := o.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	w := NewWriter(&b)
	w.Send(TypeOpen, 1, 0, Request{Exec: &Exec{Args: []string{"true"}}})
	w.Write(Frame{TypeData, 1, 2, []byte("data")})
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 6, 0x94, 4, 0, 0, 0xc4, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		for {
			frame, err := r.Read()
			if err != nil {
				return
			}
			var req Request
			var res Result
			Decode(frame, &req)
			Decode(frame, &res)
			var out bytes.Buffer
			require.NoError(t, NewWriter(&out).Write(frame))
			again, err := NewReader(&out).Read()
			require.NoError(t, err)
			require.Equal(t, len(frame.Body), len(again.Body))
		}
	})
}
