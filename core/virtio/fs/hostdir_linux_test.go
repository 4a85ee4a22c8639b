package fs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hostdir"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// TestHostDirectory looks a file up through device and server.
func TestHostDirectory(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "file"), []byte("content"), 0o644))
	dir, err := hostdir.Open(root, hostdir.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, dir.Close()) })
	dev, err := New(Config{Tag: "work", NewSession: func() Handler { return dir.NewSession() }})
	require.NoError(t, err)
	d := virtiotest.Start(t, dev, 0)
	q := d.Queues[requestQueue]
	request := func(op uint32, node uint64, args string) []byte {
		le := binary.LittleEndian
		h := le.AppendUint32(nil, uint32(40+len(args)))
		h = le.AppendUint32(h, op)
		h = le.AppendUint64(h, 77)
		h = le.AppendUint64(h, node)
		h = append(h, make([]byte, 16)...)
		head, data := d.In(16), d.In(4096)
		q.Submit(d.Out(h), d.Out([]byte(args)), head, data)
		written := q.Wait().Written
		require.EqualValues(t, written, le.Uint32(head.Bytes))
		require.Zero(t, le.Uint32(head.Bytes[4:]), "error")
		require.EqualValues(t, 77, le.Uint64(head.Bytes[8:]))
		return data.Bytes[:written-16]
	}
	init := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 7), 38)
	request(26, 0, string(init)+string(make([]byte, 56)))
	entry := request(1, 1, "file\x00")
	require.EqualValues(t, 7, binary.LittleEndian.Uint64(entry[40+8:]), "size")
}
