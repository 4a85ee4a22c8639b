package console

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReaderReadsWhatIsKeptAndWhatComes(t *testing.T) {
	r := NewRing(8)
	r.Write([]byte("0123456789"))
	d := r.NewReader()
	p := make([]byte, 5)
	n, err := d.Read(p)
	require.NoError(t, err)
	require.Equal(t, "23456", string(p[:n]))
	r.Write([]byte("ab"))
	n, err = d.Read(p)
	require.NoError(t, err)
	require.Equal(t, "789ab", string(p[:n]))

	got := make(chan string)
	go func() {
		n, _ := d.Read(p)
		got <- string(p[:n])
	}()
	r.Write([]byte("c"))
	require.Equal(t, "c", <-got)
	r.Write(bytes.Repeat([]byte("x"), 20))
	r.Write([]byte("yz"))
	r.Close()
	rest, err := io.ReadAll(d)
	require.NoError(t, err)
	require.Equal(t, "xxxxxxyz", string(rest), "what was dropped is missed")

	r = NewRing(4)
	d = r.NewReader()
	done := make(chan error)
	go func() {
		_, err := d.Read(p)
		done <- err
	}()
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	require.ErrorIs(t, <-done, io.ErrClosedPipe)
	r.Write([]byte("ab"))
	r.Clear()
	d = r.NewReader()
	r.Write([]byte("cd"))
	n, err = d.Read(p)
	require.NoError(t, err)
	require.Equal(t, "cd", string(p[:n]))
}
