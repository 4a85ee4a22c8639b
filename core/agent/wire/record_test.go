package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func records(t testing.TB, all ...any) []byte {
	var b bytes.Buffer
	w := NewRecordWriter(&b)
	for _, v := range all {
		require.NoError(t, w.Write(v))
	}
	require.NoError(t, w.Flush())
	return b.Bytes()
}

func TestRecordsComeOutAsTheyWentIn(t *testing.T) {
	all := []FileInfo{
		{Path: "a\xff\x00b", Mode: 0o100644, Size: 1 << 40, ModTime: -5, Ino: 1<<64 - 1},
		{Path: strings.Repeat("x", 60<<10), Target: "t", Error: &Error{Kind: KindIO, Message: "m"}},
		{Path: "last"},
	}
	r := NewRecordReader(bytes.NewReader(records(t, all[0], all[1], all[2])))
	for _, want := range all {
		var got FileInfo
		require.NoError(t, r.Read(&got))
		require.Equal(t, want, got)
	}
	require.Equal(t, io.EOF, r.Read(&FileInfo{}))
}

func TestBrokenRecordsAreRefused(t *testing.T) {
	require.ErrorIs(t, NewRecordWriter(io.Discard).Write(FileInfo{Path: strings.Repeat("x", MaxRecord)}), ErrTooLarge)
	whole := records(t, Event{Op: EventCreated, Path: "x"})
	for name, b := range map[string][]byte{
		"huge":              {0xff, 0xff, 0xff, 0xff},
		"a byte too large":  append([]byte{0, 1, 0, 1}, make([]byte, MaxRecord+1)...),
		"no map":            {0, 0, 0, 1, 0xc1},
		"cut off":           whole[:len(whole)-1],
		"cut off in length": whole[:3],
		"string too long":   {0, 0, 0, 9, 0x81, 0xa2, 'o', 'p', 0xdb, 0xff, 0xff, 0xff, 0xff},
	} {
		require.ErrorIs(t, NewRecordReader(bytes.NewReader(b)).Read(&Event{}), ErrProtocol, name)
	}
	broken := errors.New("broken")
	require.ErrorIs(t, NewRecordReader(io.MultiReader(bytes.NewReader(whole[:5]), failingReader{broken})).Read(&Event{}), broken)
}

type failingReader struct{ error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.error }

// Whatever comes: it ends with an error or the end, and no record is larger than it may be.
func FuzzRecords(f *testing.F) {
	f.Add(records(f, FileInfo{Path: "a", ModTime: 1}, FileInfo{Path: "b", Error: &Error{Kind: KindIO}}))
	f.Add(records(f, Event{Op: EventRenamed, Path: "a", From: "b"}))
	f.Add(records(f, Program{ID: 1, Args: []string{"true", "x"}, Started: 4}))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 6, 0x81, 0xa4, 'm', 't', 'i', 'm'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{&FileInfo{}, &Event{}, &Program{}} {
			r := NewRecordReader(bytes.NewReader(b))
			n := 0
			for r.Read(into) == nil {
				n++
			}
			require.LessOrEqual(t, 4*n, len(b))
			require.LessOrEqual(t, cap(r.buf), MaxRecord)
		}
	})
}
