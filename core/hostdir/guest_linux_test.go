package hostdir

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const guestRoot = fuse.FUSE_ROOT_ID

// guest is the guest's kernel: it sends real frames to a session.
type guest struct {
	t      testing.TB
	dir    *Dir
	s      *Session
	root   string // the host's path
	unique uint64
	caller fuse.Owner
	cut    int // bytes in each piece of in and out
}

// mount serves a new directory.
func mount(t testing.TB, o Options) *guest {
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	return mountAt(t, root, o)
}

func mountAt(t testing.TB, root string, o Options) *guest {
	d, err := Open(root, o)
	require.NoError(t, err)
	g := &guest{t: t, dir: d, s: d.NewSession(), root: root, cut: 4096}
	t.Cleanup(func() {
		g.s.Close()
		require.NoError(t, d.Close())
	})
	g.init()
	return g
}

func (g *guest) init() {
	g.t.Helper()
	in := fuse.InitIn{Major: 7, Minor: 38, MaxReadAhead: 128 << 10, Flags: 0x73fffffb, Flags2: 1}
	var out fuse.InitOut
	require.Zero(g.t, g.call(opInit, 0, &in, &out))
	require.EqualValues(g.t, 7, out.Major)
	require.EqualValues(g.t, MaxTransfer, out.MaxWrite)
	require.EqualValues(g.t, 256, out.MaxPages)
}

// pieces cuts b up.
func pieces(b []byte, n int) (p [][]byte) {
	for len(b) > 0 {
		m := min(n, len(b))
		p = append(p, b[:m:m])
		b = b[m:]
	}
	return p
}

// bytesOf returns the memory of a struct.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

// frame puts a request together. args begins with a header, whose fields it fills in.
func (g *guest) frame(op uint32, node uint64, args []byte, tail ...[]byte) []byte {
	msg := bytes.Clone(args)
	for _, p := range tail {
		msg = append(msg, p...)
	}
	g.unique++
	h := fuse.InHeader{Length: uint32(len(msg)), Opcode: op, NodeId: node, Unique: g.unique}
	h.Owner = g.caller
	copy(msg, bytesOf(&h))
	return msg
}

// raw sends a frame and returns what follows the reply's header, and the error.
func (g *guest) raw(msg []byte, room int) ([]byte, unix.Errno) {
	g.t.Helper()
	out := make([]byte, room)
	n := g.s.Handle(pieces(msg, g.cut), pieces(out, g.cut))
	require.LessOrEqual(g.t, n, room)
	require.GreaterOrEqual(g.t, n, outHeaderSize)
	var h fuse.OutHeader
	copy(bytesOf(&h), out)
	require.EqualValues(g.t, n, h.Length)
	require.Equal(g.t, (*fuse.InHeader)(unsafe.Pointer(&msg[0])).Unique, h.Unique)
	require.LessOrEqual(g.t, h.Status, int32(0))
	if h.Status != 0 {
		require.EqualValues(g.t, outHeaderSize, n)
	}
	return out[outHeaderSize:n], unix.Errno(-h.Status)
}

// do sends a request whose arguments are in, a pointer to a struct that begins with a header, and returns what followed the reply's.
func do[T any](g *guest, op uint32, node uint64, in *T, room int, tail ...[]byte) ([]byte, unix.Errno) {
	g.t.Helper()
	return g.raw(g.frame(op, node, bytesOf(in), tail...), outHeaderSize+room)
}

func name(s string) []byte { return append([]byte(s), 0) }

// call is do for a reply that is a struct.
func call[T, R any](g *guest, op uint32, node uint64, in *T, out *R, tail ...[]byte) unix.Errno {
	g.t.Helper()
	b, errno := do(g, op, node, in, int(unsafe.Sizeof(*out)), tail...)
	if errno == 0 {
		require.Len(g.t, b, int(unsafe.Sizeof(*out)))
		copy(bytesOf(out), b)
	}
	return errno
}

func (g *guest) call(op uint32, node uint64, in *fuse.InitIn, out *fuse.InitOut) unix.Errno {
	g.t.Helper()
	return call(g, op, node, in, out)
}

func (g *guest) lookup(dir uint64, s string) (out fuse.EntryOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opLookup, dir, &fuse.InHeader{}, &out, name(s))
	return out, errno
}

// must looks a path up.
func (g *guest) must(path ...string) fuse.EntryOut {
	g.t.Helper()
	e := fuse.EntryOut{NodeId: guestRoot}
	for _, s := range path {
		var errno unix.Errno
		e, errno = g.lookup(e.NodeId, s)
		require.Zero(g.t, errno, s)
	}
	return e
}

func (g *guest) getattr(node uint64) (out fuse.AttrOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opGetattr, node, &fuse.GetAttrIn{}, &out)
	return out, errno
}

func (g *guest) setattr(node uint64, in fuse.SetAttrInCommon) (out fuse.AttrOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opSetattr, node, &in, &out)
	return out, errno
}

func (g *guest) forget(node, lookups uint64) {
	g.t.Helper()
	msg := g.frame(opForget, node, bytesOf(&fuse.ForgetIn{Nlookup: lookups}))
	require.Zero(g.t, g.s.Handle([][]byte{msg}, nil))
}

func (g *guest) mkdir(dir uint64, s string, mode uint32) (out fuse.EntryOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opMkdir, dir, &fuse.MkdirIn{Mode: mode}, &out, name(s))
	return out, errno
}

func (g *guest) mknod(dir uint64, s string, mode uint32) (out fuse.EntryOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opMknod, dir, &fuse.MknodIn{Mode: mode}, &out, name(s))
	return out, errno
}

func (g *guest) symlink(dir uint64, s, target string) (out fuse.EntryOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opSymlink, dir, &fuse.InHeader{}, &out, name(s), name(target))
	return out, errno
}

func (g *guest) readlink(node uint64) (string, unix.Errno) {
	g.t.Helper()
	b, errno := do(g, opReadlink, node, &fuse.InHeader{}, 4096)
	return string(b), errno
}

func (g *guest) link(node, dir uint64, s string) (out fuse.EntryOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opLink, dir, &fuse.LinkIn{Oldnodeid: node}, &out, name(s))
	return out, errno
}

func (g *guest) unlink(dir uint64, s string) unix.Errno {
	g.t.Helper()
	_, errno := do(g, opUnlink, dir, &fuse.InHeader{}, 0, name(s))
	return errno
}

func (g *guest) rmdir(dir uint64, s string) unix.Errno {
	g.t.Helper()
	_, errno := do(g, opRmdir, dir, &fuse.InHeader{}, 0, name(s))
	return errno
}

func (g *guest) rename(dir uint64, s string, newDir uint64, newName string, flags uint32) unix.Errno {
	g.t.Helper()
	_, errno := do(g, opRename2, dir, &fuse.RenameIn{Newdir: newDir, Flags: flags}, 0, name(s), name(newName))
	return errno
}

func (g *guest) open(node uint64, flags int) (uint64, unix.Errno) {
	g.t.Helper()
	var out fuse.OpenOut
	errno := call(g, opOpen, node, &fuse.OpenIn{Flags: uint32(flags)}, &out)
	return out.Fh, errno
}

func (g *guest) create(dir uint64, s string, flags int, mode uint32) (out fuse.CreateOut, errno unix.Errno) {
	g.t.Helper()
	errno = call(g, opCreate, dir, &fuse.CreateIn{Flags: uint32(flags), Mode: mode}, &out, name(s))
	return out, errno
}

func (g *guest) read(fh, off uint64, n int) ([]byte, unix.Errno) {
	g.t.Helper()
	return do(g, opRead, guestRoot, &fuse.ReadIn{Fh: fh, Offset: off, Size: uint32(n)}, n)
}

func (g *guest) write(fh, off uint64, p []byte, flags uint32) (int, unix.Errno) {
	g.t.Helper()
	var out fuse.WriteOut
	errno := call(g, opWrite, guestRoot, &fuse.WriteIn{Fh: fh, Offset: off, Size: uint32(len(p)), Flags: flags}, &out, p)
	return int(out.Size), errno
}

func (g *guest) release(fh uint64) {
	g.t.Helper()
	_, errno := do(g, opRelease, guestRoot, &fuse.ReleaseIn{Fh: fh}, 0)
	require.Zero(g.t, errno)
}

func (g *guest) opendir(node uint64) (uint64, unix.Errno) {
	g.t.Helper()
	var out fuse.OpenOut
	errno := call(g, opOpendir, node, &fuse.OpenIn{}, &out)
	return out.Fh, errno
}

func (g *guest) readdir(fh, off uint64, room int) ([]fuse.DirEntry, unix.Errno) {
	g.t.Helper()
	b, errno := do(g, opReaddir, guestRoot, &fuse.ReadIn{Fh: fh, Offset: off, Size: uint32(room)}, room)
	e, err := fuse.ParseDirEntries(b)
	require.NoError(g.t, err)
	return e, errno
}

func (g *guest) readdirplus(fh, off uint64, room int) ([]fuse.DirEntry, []fuse.EntryOut, unix.Errno) {
	g.t.Helper()
	b, errno := do(g, opReaddirplus, guestRoot, &fuse.ReadIn{Fh: fh, Offset: off, Size: uint32(room)}, room)
	e, out, err := fuse.ParseDirLookupEntries(b)
	require.NoError(g.t, err)
	return e, out, errno
}

// host writes a file on the host, by a path in the root.
func (g *guest) host(path, content string) {
	g.t.Helper()
	full := filepath.Join(g.root, path)
	require.NoError(g.t, os.MkdirAll(filepath.Dir(full), 0o755))
	require.NoError(g.t, os.WriteFile(full, []byte(content), 0o644))
}

// content reads a file on the host.
func (g *guest) content(path string) string {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.root, path))
	require.NoError(g.t, err)
	return string(b)
}

// files returns how many descriptors the session counts, and checks its books.
func (g *guest) files() int {
	tab := &g.s.fs.table
	tab.mu.Lock()
	defer tab.mu.Unlock()
	n := len(tab.handles)
	forgotten := map[*node]bool{}
	for _, h := range tab.handles {
		if tab.byID[h.node.id] == nil && !forgotten[h.node] {
			forgotten[h.node] = true
			n++
		}
	}
	for _, node := range tab.byID {
		if node != tab.root && node.fd >= 0 {
			n++
		}
	}
	require.Equal(g.t, n, tab.files)
	require.Equal(g.t, len(tab.byID), len(tab.byKey))
	return n
}
