package agent

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// deliver has the guest take a request and answer it with a reply and data.
func (g *fakeGuest) deliver(reply wire.Reply, data []byte, result *wire.Error) {
	f, err := g.r.Read()
	if err != nil {
		return
	}
	g.send(wire.TypeReply, f.Stream, 0, reply)
	for len(data) > 0 {
		n := min(len(data), wire.MaxData)
		g.send(wire.TypeData, f.Stream, wire.ChannelOut, data[:n])
		data = data[n:]
	}
	g.send(wire.TypeResult, f.Stream, 0, wire.Result{Error: result})
	go io.Copy(io.Discard, g.conn)
}

func record(t *testing.T, v any) []byte {
	b, err := msgpack.Marshal(v)
	require.NoError(t, err)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func TestRecordsOfAHostileGuest(t *testing.T) {
	good := record(t, wire.FileInfo{Path: "a"})
	for name, data := range map[string][]byte{
		"huge":          {0xff, 0xff, 0xff, 0xff},
		"no name":       record(t, wire.FileInfo{}),
		"negative size": record(t, wire.FileInfo{Path: "x", Size: -1}),
		"no map":        record(t, []int{1, 2}),
		"cut off":       good[:len(good)-1],
	} {
		c, g := connect(t)
		go g.deliver(wire.Reply{}, append(bytes.Clone(good), data...), nil)
		r, err := c.List(testContext(t), "/")
		require.NoError(t, err)
		info, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, "a", info.Name)
		for range 2 {
			_, err = r.Next()
			require.ErrorIs(t, err, wire.ErrProtocol, name)
		}
		r.Close()
	}
	c, g := connect(t)
	go g.deliver(wire.Reply{}, record(t, wire.Event{Op: "invented", Path: "x"}), nil)
	events, err := c.Watch(testContext(t), "/", true)
	require.NoError(t, err)
	_, err = events.Next()
	require.ErrorIs(t, err, wire.ErrProtocol)
}

func TestWhatComesBeforeAnErrorIsTold(t *testing.T) {
	c, g := connect(t)
	data := append(record(t, wire.FileInfo{Path: "a/\xff"}), record(t, wire.FileInfo{Path: "b", Mode: 0o120777, Error: &wire.Error{Kind: wire.KindIO, Message: "no\x1b"}})...)
	go g.deliver(wire.Reply{}, data, &wire.Error{Kind: wire.KindPermission, Message: "walk: \x1b[31m"})
	r, err := c.Walk(testContext(t), "/")
	require.NoError(t, err)
	n := 0
	for info, e := range r.All() {
		if n++; e != nil {
			err = e
			break
		}
		if n == 2 {
			require.EqualError(t, info.Err, "no\uFFFD")
			require.Equal(t, os.ModeSymlink|0o777, info.Mode)
		} else {
			require.Equal(t, "\xff", info.Name)
		}
	}
	require.Equal(t, 3, n)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "walk: \uFFFD[31m", e.Message)
}

func TestAnswersThatAreNoAnswers(t *testing.T) {
	c, g := connect(t)
	go g.deliver(wire.Reply{}, nil, nil)
	_, err := c.Stat(testContext(t), "/", true)
	require.ErrorIs(t, err, wire.ErrProtocol)

	c, g = connect(t)
	go g.deliver(wire.Reply{}, []byte("12345"), nil)
	r, err := c.ReadFile(testContext(t), "/x", Range(0, 4))
	require.NoError(t, err)
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, wire.ErrProtocol)
}

// entries makes an archive.
func entries(t *testing.T, headers ...*tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode |= 0o600
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(make([]byte, h.Size))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestCopiesOfAHostileGuest(t *testing.T) {
	root, dir := &tar.Header{Typeflag: tar.TypeDir, Name: "./"}, &tar.Header{Typeflag: tar.TypeDir, Name: "d/"}
	file := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 3} }
	link := &tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}
	for _, test := range []struct {
		name, from string
		data       []byte
		result     *wire.Error
		err        error
	}{
		{"dot dot", "/src", entries(t, root, file("../victim")), nil, tree.ErrUnsafe},
		{"absolute", "/src", entries(t, root, file("/victim")), nil, tree.ErrUnsafe},
		{"through a link", "/src", entries(t, root, link, file("l/victim")), nil, tree.ErrUnsafe},
		{"device", "/src", entries(t, root, &tar.Header{Typeflag: tar.TypeBlock, Name: "b"}), nil, tree.ErrSpecial},
		{"two files", "/src", entries(t, file("src"), file("victim")), nil, tree.ErrArchive},
		{"a file and a directory", "/src", entries(t, file("src"), dir), nil, tree.ErrArchive},
		{"no directory", "/src/.", entries(t, file("src")), nil, wire.ErrProtocol},
		{"nothing", "/src", nil, nil, tree.ErrArchive},
		{"noise", "/src", bytes.Repeat([]byte{1}, 2048), nil, tree.ErrArchive},
		{"more and more", "/src", append(entries(t, root), make([]byte, maxPadding+wire.MaxData)...), nil, wire.ErrProtocol},
		{"a failure at the end", "/src", entries(t, root), &wire.Error{Kind: wire.KindIO, Message: "m"}, nil},
	} {
		c, g := connect(t)
		base := t.TempDir()
		require.NoError(t, os.WriteFile(base+"/victim", []byte("innocent"), 0o600))
		go g.deliver(wire.Reply{}, test.data, test.result)
		err := c.CopyOut(testContext(t), test.from, base+"/copy", CopyOutOptions{})
		if test.err != nil {
			require.ErrorIs(t, err, test.err, test.name)
		} else {
			require.ErrorAs(t, err, new(*Error), test.name)
		}
		b, err := os.ReadFile(base + "/victim")
		require.NoError(t, err)
		require.Equal(t, "innocent", string(b), test.name)
	}
	// The guest names a file as it likes: the caller's name counts.
	c, g := connect(t)
	base := t.TempDir()
	go g.deliver(wire.Reply{}, entries(t, file("../../victim")), nil)
	require.NoError(t, c.CopyOut(testContext(t), "/dir/src", base, CopyOutOptions{}))
	require.FileExists(t, base+"/src")
}
