package hostdir

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// samples returns one good request of each kind, for a session that has looked up node and opened file and directory handles.
func samples(g *guest, node, file, dir uint64) (all [][]byte) {
	add := func(op uint32, id uint64, args []byte, tail ...[]byte) {
		all = append(all, g.frame(op, id, args, tail...))
	}
	header := bytesOf(&fuse.InHeader{})
	read := fuse.ReadIn{Fh: file, Size: 100}
	add(opLookup, guestRoot, header, name("f"))
	add(opForget, node, bytesOf(&fuse.ForgetIn{Nlookup: 1}))
	add(opGetattr, node, bytesOf(&fuse.GetAttrIn{}))
	add(opSetattr, node, bytesOf(&fuse.SetAttrInCommon{Valid: 0x7f, Fh: file, Size: 10, Mode: 0o644}))
	add(opReadlink, node, header)
	add(opSymlink, guestRoot, header, name("link"), name("../target"))
	add(opMknod, guestRoot, bytesOf(&fuse.MknodIn{Mode: unix.S_IFIFO | 0o644}), name("fifo"))
	add(opMkdir, guestRoot, bytesOf(&fuse.MkdirIn{Mode: 0o755}), name("sub"))
	add(opUnlink, guestRoot, header, name("f"))
	add(opRmdir, guestRoot, header, name("d"))
	add(opRename, guestRoot, bytesOf(&fuse.RenameIn{Newdir: guestRoot})[:48], name("f"), name("g"))
	add(opRename2, guestRoot, bytesOf(&fuse.RenameIn{Newdir: guestRoot, Flags: 2}), name("f"), name("d"))
	add(opLink, guestRoot, bytesOf(&fuse.LinkIn{Oldnodeid: node}), name("hard"))
	add(opOpen, node, bytesOf(&fuse.OpenIn{Flags: unix.O_RDWR}))
	add(opRead, node, bytesOf(&read))
	add(opWrite, node, bytesOf(&fuse.WriteIn{Fh: file, Size: 4}), []byte("data"))
	add(opStatfs, guestRoot, header)
	add(opRelease, node, bytesOf(&fuse.ReleaseIn{Fh: file}))
	add(opFsync, node, bytesOf(&fuse.FsyncIn{Fh: file}))
	add(opSetxattr, node, bytesOf(&fuse.SetXAttrIn{Size: 5})[:48], name("user.x"), []byte("value"))
	add(opGetxattr, node, bytesOf(&fuse.GetXAttrIn{Size: 10}), name("user.x"))
	add(opListxattr, node, bytesOf(&fuse.GetXAttrIn{Size: 10}))
	add(opRemovexattr, node, header, name("user.x"))
	add(opInit, 0, bytesOf(&fuse.InitIn{Major: 7, Minor: 38, Flags: ^uint32(0), Flags2: ^uint32(0)}))
	add(opOpendir, guestRoot, bytesOf(&fuse.OpenIn{}))
	read.Fh = dir
	add(opReaddir, guestRoot, bytesOf(&read))
	add(opReaddirplus, guestRoot, bytesOf(&read))
	add(opReleasedir, guestRoot, bytesOf(&fuse.ReleaseIn{Fh: dir}))
	add(opFsyncdir, guestRoot, bytesOf(&fuse.FsyncIn{Fh: dir}))
	add(opCreate, guestRoot, bytesOf(&fuse.CreateIn{Flags: unix.O_RDWR, Mode: 0o644}), name("new"))
	add(opTmpfile, guestRoot, bytesOf(&fuse.CreateIn{Flags: unix.O_RDWR, Mode: 0o644}), name("/"))
	add(opDestroy, 0, header)
	add(opBatchForget, 0, append(bytes.Clone(header), 1, 0, 0, 0, 0, 0, 0, 0), bytesOf(&[2]uint64{node, 1}))
	add(opFallocate, node, bytesOf(&fuse.FallocateIn{Fh: file, Length: 100}))
	add(opLseek, node, bytesOf(&fuse.LseekIn{Fh: file, Whence: unix.SEEK_DATA}))
	add(opCopyFileRange, node, bytesOf(&fuse.CopyFileRangeIn{FhIn: file, FhOut: file, OffOut: 1000, Len: 100}))
	for _, op := range []uint32{0, 7, 19, 25, 31, 32, 33, 34, 36, 37, 39, 40, 41, 48, 49, 50, 52, 53, 100, 105, 106, ^uint32(0)} {
		add(op, node, make([]byte, 128))
	}
	return all
}

// prepared returns a guest that knows a file and a directory and has them open.
func prepared(t testing.TB, root string, o Options) (g *guest, node, file, dir uint64) {
	g = mountAt(t, root, o)
	g.host("f", "content of the file")
	g.host("d/inner", "x")
	node = g.must("f").NodeId
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	file, errno := g.open(node, flags)
	require.Zero(t, errno)
	dir, errno = g.opendir(guestRoot)
	require.Zero(t, errno)
	return g, node, file, dir
}

// answer sends bytes and checks that what comes back is a reply or nothing.
func answer(t testing.TB, s *Session, msg []byte, room, cut int) {
	out := make([]byte, room)
	n := s.Handle(pieces(msg, cut), pieces(out, cut))
	if n == 0 {
		return
	}
	require.LessOrEqual(t, n, room)
	require.GreaterOrEqual(t, n, outHeaderSize)
	require.EqualValues(t, n, binary.LittleEndian.Uint32(out), "length")
	errno := int32(binary.LittleEndian.Uint32(out[4:]))
	require.True(t, errno <= 0 && errno > -4096, "error %d", errno)
	require.Equal(t, msg[8:16], out[8:16], "unique")
}

// TestTruncated sends every request cut off at every byte, with its length as it was and as it is, and with replies cut off.
func TestTruncated(t *testing.T) {
	g, node, file, dir := prepared(t, t.TempDir(), Options{})
	for i, n := 0, len(samples(g, node, file, dir)); i < n; i++ {
		for _, lie := range []bool{false, true} {
			for end := 0; ; end++ {
				msg := samples(g, node, file, dir)[i]
				if end > len(msg) {
					break
				}
				msg = msg[:end]
				if !lie && end >= 4 {
					binary.LittleEndian.PutUint32(msg, uint32(end))
				}
				answer(t, g.s, msg, 4096, 13)
			}
			g.s.Close()
			g, node, file, dir = prepared(t, t.TempDir(), Options{})
		}
		for room := 0; room < 200; room += 7 {
			answer(t, g.s, samples(g, node, file, dir)[i], room, 4096)
		}
	}
}

func TestLengths(t *testing.T) {
	g, node, file, _ := prepared(t, t.TempDir(), Options{})
	le := binary.LittleEndian
	errnoOf := func(msg []byte, room int) unix.Errno {
		t.Helper()
		_, errno := g.raw(msg, room)
		return errno
	}
	good := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), name("f"))
	require.Zero(t, errnoOf(append(bytes.Clone(good), "more than the header says"...), 200))
	long := bytes.Clone(good)
	le.PutUint32(long, uint32(len(long)+1))
	require.Equal(t, unix.EINVAL, errnoOf(long, 200))
	le.PutUint32(long, ^uint32(0))
	require.Equal(t, unix.EINVAL, errnoOf(long, 200))
	le.PutUint32(long, 0)
	require.Equal(t, unix.EINVAL, errnoOf(long, 200))
	extended := bytes.Clone(good)
	le.PutUint16(extended[36:], 1)
	require.Equal(t, unix.EINVAL, errnoOf(extended, 200))
	require.Equal(t, unix.EINVAL, errnoOf(good, 100), "no room for the reply")
	unended := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), []byte("f"))
	require.Equal(t, unix.EINVAL, errnoOf(unended, 200))
	two := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), name("f"), name("g"))
	require.Equal(t, unix.EINVAL, errnoOf(two, 200))

	// Sizes are bounded by the buffers, never taken at their word.
	b, errno := do(g, opRead, node, &fuse.ReadIn{Fh: file, Size: ^uint32(0)}, 7)
	require.Zero(t, errno)
	require.Equal(t, "content", string(b))
	require.Equal(t, unix.EINVAL, second(do(g, opWrite, node, &fuse.WriteIn{Fh: file, Size: ^uint32(0)}, 8, []byte("x"))))
	require.Equal(t, unix.EINVAL, second(do(g, opWrite, node, &fuse.WriteIn{Fh: file, Size: 1}, 8, []byte("xx"))))
	require.Equal(t, unix.EINVAL, second(do(g, opWrite, node, &fuse.WriteIn{Fh: file, Size: 1}, 7, []byte("x"))))
	huge := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), bytes.Repeat([]byte("x"), 1<<20), []byte{0})
	require.Equal(t, unix.EMSGSIZE, errnoOf(huge, 200))
	attr := fuse.SetXAttrIn{Size: 1 << 30}
	require.Equal(t, unix.EINVAL, errnoOf(g.frame(opSetxattr, node, bytesOf(&attr)[:48], name("user.x"), []byte("v")), 16))
	for _, op := range []uint32{opReaddir, opGetxattr, opListxattr} {
		require.NotZero(t, errnoOf(g.frame(op, node, bytesOf(&fuse.ReadIn{Size: ^uint32(0)})), 16))
	}
	require.Zero(t, g.s.Handle(nil, nil))
	require.Zero(t, g.s.Handle([][]byte{{}, {}}, [][]byte{{}}))
	require.Zero(t, g.s.Handle([][]byte{good}, nil))
	require.Zero(t, g.s.Handle([][]byte{good[:39]}, [][]byte{make([]byte, 100)}))
}

func TestUnknownIDs(t *testing.T) {
	g, _, file, dir := prepared(t, t.TempDir(), Options{})
	for _, id := range []uint64{0, 2, file, dir, 1 << 62, 1<<63 + 1, ^uint64(0)} {
		_, errno := g.getattr(id)
		require.Equal(t, unix.ESTALE, errno, id)
		_, errno = g.lookup(id, "f")
		require.Equal(t, unix.ESTALE, errno, id)
		_, errno = g.link(id, guestRoot, "l")
		require.Equal(t, unix.ESTALE, errno, id)
		require.Equal(t, unix.ESTALE, g.rename(guestRoot, "f", id, "g", 0))
		g.forget(id, 1)
	}
	for _, fh := range []uint64{0, 1, dir, 1 << 62, ^uint64(0)} {
		_, errno := g.read(fh, 0, 10)
		require.Equal(t, unix.EBADF, errno, fh)
		_, errno = g.write(fh, 0, []byte("x"), 0)
		require.Equal(t, unix.EBADF, errno, fh)
		g.release(fh)
	}
	for _, fh := range []uint64{0, 1, file, ^uint64(0)} {
		_, errno := g.readdir(fh, 0, 1000)
		require.Equal(t, unix.EBADF, errno, fh)
	}
	_, errno := g.read(file, 0, 10)
	require.Zero(t, errno)
}

// TestChangingMessage has the guest change a message while it is read: what was checked must be what is used.
func TestChangingMessage(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(root), "out"), []byte("outside"), 0o644))
	g, node, file, _ := prepared(t, root, Options{})
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // not Go's, as a guest's
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(page)) }()
	lookup := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), []byte("////f\x00"))
	other := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), []byte("../out\x00"))
	read := g.frame(opRead, node, bytesOf(&fuse.ReadIn{Fh: file, Size: 4000}))
	messages := [][]byte{lookup, other, read, g.frame(opBatchForget, 0, bytes.Repeat([]byte{0xff}, 100))}
	good := g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), []byte("f\x00"))
	messages = append(messages, good)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				m := messages[i%len(messages)]
				copy(page[4:], m[4:])
				binary.LittleEndian.PutUint32(page, uint32(len(m)+i%3-1))
			}
		}
	})
	var answers, found int
	out := make([]byte, 4096)
	for range 20000 {
		n := g.s.Handle([][]byte{page[:100]}, [][]byte{out[:200]})
		if n == 0 {
			continue
		}
		answers++
		require.EqualValues(t, n, binary.LittleEndian.Uint32(out))
		if n == outHeaderSize+entrySize {
			found++
			var e fuse.EntryOut
			copy(bytesOf(&e), out[outHeaderSize:])
			require.EqualValues(t, len("content of the file"), e.Size)
		}
	}
	close(stop)
	wg.Wait()
	require.NotZero(t, answers)
	t.Logf("%d answers, %d found", answers, found)
}

// FuzzHandle sends up to a few arbitrary messages to a session, cut into arbitrary pieces; room is for the reply of each.
func FuzzHandle(f *testing.F) {
	root := f.TempDir()
	g, node, file, dir := prepared(f, root, Options{})
	for _, msg := range samples(g, node, file, dir) {
		f.Add(msg, msg, uint16(200), byte(17), byte(0))
		f.Add(msg, msg, uint16(5000), byte(255), byte(1))
	}
	var once sync.Once
	f.Fuzz(func(t *testing.T, a, b []byte, room uint16, cut, o byte) {
		once.Do(func() { // FALLOCATE must not fill the disk
			signal.Ignore(unix.SIGXFSZ)
			require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 16 << 20, Max: unix.RLIM_INFINITY}))
		})
		root := filepath.Join(t.TempDir(), "root")
		require.NoError(t, os.Mkdir(root, 0o755))
		canary := filepath.Join(filepath.Dir(root), "canary")
		require.NoError(t, os.WriteFile(canary, []byte("canary"), 0o644))
		require.NoError(t, os.Symlink("../canary", filepath.Join(root, "g")))
		g, node, file, dir := prepared(t, root, Options{Symlinks: Policy(o % 2), ReadOnly: o&2 != 0, IDs: IDs(o >> 2 & 1), MaxFiles: MinFiles})
		for _, msg := range [][]byte{a, b, a, b} {
			msg = bytes.Clone(msg)
			// Ids are drawn anew in each session: give the message some that it can hit.
			if len(msg) >= 48 && o&8 != 0 {
				binary.LittleEndian.PutUint64(msg[16:], [...]uint64{guestRoot, node}[o>>4&1])
				binary.LittleEndian.PutUint64(msg[40:], [...]uint64{file, dir, node, guestRoot}[o>>5&3])
			}
			if len(msg) >= 4 && o&128 != 0 {
				binary.LittleEndian.PutUint32(msg, uint32(len(msg)))
			}
			answer(t, g.s, msg, int(room), int(cut)+1)
		}
		content, err := os.ReadFile(canary)
		require.NoError(t, err)
		require.Equal(t, "canary", string(content))
		e, err := os.ReadDir(filepath.Dir(root))
		require.NoError(t, err)
		require.Len(t, e, 2)
		g.files()
	})
}
