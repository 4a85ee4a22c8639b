package hostdir

import (
	"encoding/binary"
	"io"
	"log"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Limits on one request.
const (
	// MaxTransfer is the most bytes that one READ or WRITE moves; the guest is told so.
	MaxTransfer = 1 << 20

	maxMessage = 128 << 10 // anything else, either way
	maxXattr   = 64 << 10  // XATTR_SIZE_MAX
)

// rootID is the root's node id behind Handle. The guest's is 1, but there go-fuse has a file of its own (.go-fuse-epoll-hack).
const rootID = 1 << 63

// Session is one mount of a Dir by a guest: the files that its kernel knows and those it has open. Its methods may be called from any goroutine.
type Session struct {
	// gate is held for reading by requests, and for writing by those that change the protocol's state or empty the tables.
	gate   sync.RWMutex
	closed bool
	fs     *fileSystem
	proto  *fuse.ProtocolServer
}

// NewSession returns a new mount, to be closed by the caller. One of a closed Dir answers nothing.
func (d *Dir) NewSession() *Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refs == 0 {
		return &Session{closed: true}
	}
	d.refs++
	fs := &fileSystem{RawFileSystem: fuse.NewDefaultRawFileSystem(), dir: d}
	fs.maxFiles, fs.maxNodes = d.o.MaxFiles, d.o.MaxNodes
	fs.init(&node{id: rootID, key: d.key, kind: unix.S_IFDIR, lookups: 1, fd: d.fd, users: 1})
	return &Session{fs: fs, proto: newProto(fs)}
}

func newProto(fs *fileSystem) *fuse.ProtocolServer {
	return fuse.NewProtocolServer(fs, &fuse.MountOptions{
		Name:                 "hostdir",
		Logger:               log.New(io.Discard, "", 0), // what a guest can cause must not fill the host's log
		PanicHandler:         func(any) fuse.Status { return fuse.EIO },
		MaxWrite:             MaxTransfer,
		MaxBackground:        64,
		ExtraCapabilities:    fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
	})
}

// Close forgets everything that the guest knows and closes its files. It waits for requests that are being answered. A second Close does nothing.
func (s *Session) Close() {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.fs.clear()
	s.fs.dir.mu.Lock()
	defer s.fs.dir.mu.Unlock()
	_ = s.fs.dir.unref()
}

// Opcodes (enum fuse_opcode in linux/fuse.h).
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opCreate        = 35
	opDestroy       = 38
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opTmpfile       = 51
)

// form is what a request of an opcode looks like.
type form struct {
	args     int  // bytes after the header
	names    int  // strings after those, each with its NUL
	rest     bool // more bytes may follow
	reply    int  // bytes after the reply's header
	changes  bool // fails where the directory is read-only
	noReply  bool
	variable bool // the reply is as long as the size in the arguments says, at most
}

const (
	headerSize    = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	entrySize     = int(unsafe.Sizeof(fuse.EntryOut{}))
	attrSize      = int(unsafe.Sizeof(fuse.AttrOut{}))
	openSize      = int(unsafe.Sizeof(fuse.OpenOut{}))
)

// forms has the requests that are served, of the sizes that protocol 7.12 and later use. All others get ENOSYS, after which Linux does without them, in
// particular:
//   - FLUSH: WRITE already told of every error, since there is no write-back cache;
//   - ACCESS: the guest's kernel checks permissions itself (default_permissions);
//   - GETLK, SETLK, SETLKW: locks are the guest's own;
//   - INTERRUPT: no request waits for another;
//   - SYNCFS: it would have a guest flush file systems of the host.
var forms = [...]*form{
	opLookup:        {names: 1, reply: entrySize},
	opForget:        {args: 8, noReply: true},
	opGetattr:       {args: 16, reply: attrSize},
	opSetattr:       {args: 88, reply: attrSize, changes: true},
	opReadlink:      {},
	opSymlink:       {names: 2, reply: entrySize, changes: true},
	opMknod:         {args: 16, names: 1, reply: entrySize, changes: true},
	opMkdir:         {args: 8, names: 1, reply: entrySize, changes: true},
	opUnlink:        {names: 1, changes: true},
	opRmdir:         {names: 1, changes: true},
	opRename:        {args: 8, names: 2, changes: true},
	opLink:          {args: 8, names: 1, reply: entrySize, changes: true},
	opOpen:          {args: 8, reply: openSize},
	opRead:          {args: 40},
	opWrite:         {args: 40, rest: true, reply: 8, changes: true},
	opStatfs:        {reply: 80},
	opRelease:       {args: 24},
	opFsync:         {args: 16},
	opSetxattr:      {args: 8, names: 1, rest: true, changes: true},
	opGetxattr:      {args: 8, names: 1, variable: true},
	opListxattr:     {args: 8, variable: true},
	opRemovexattr:   {names: 1, changes: true},
	opInit:          {args: 16, rest: true, reply: 64},
	opOpendir:       {args: 8, reply: openSize},
	opReaddir:       {args: 40, variable: true},
	opReleasedir:    {args: 24},
	opFsyncdir:      {args: 16},
	opCreate:        {args: 16, names: 1, reply: entrySize + openSize, changes: true},
	opDestroy:       {},
	opBatchForget:   {args: 8, rest: true, noReply: true},
	opFallocate:     {args: 32, changes: true},
	opReaddirplus:   {args: 40, variable: true},
	opRename2:       {args: 16, names: 2, changes: true},
	opLseek:         {args: 24, reply: 8},
	opCopyFileRange: {args: 56, reply: 8, changes: true},
	opTmpfile:       {args: 16, names: 1, reply: entrySize + openSize, changes: true},
}

// scratch is memory for one request. go-fuse gets only this and never the guest's own, which could change between its checks and its use.
type scratch struct {
	in, out [maxMessage]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Handle answers one request. in is what the guest sent, header first, and out is where the reply goes, both cut up in any way; they may be memory
// that the guest goes on changing. It returns how many bytes it wrote to out from the start, none for requests without a reply and
// for those that cannot be answered as they or out are too short for a header. It blocks as long as the host's file system does.
func (s *Session) Handle(in, out [][]byte) (written int) {
	var hdr header
	if !hdr.read(in) {
		return 0
	}
	// A last resort: nothing is known that panics, here or in go-fuse, but it is a large parser of what a hostile guest sends, and the host has other guests.
	defer func() {
		if recover() != nil {
			written = hdr.fail(out, unix.EIO)
		}
	}()
	f, err := hdr.form()
	if err != nil {
		return hdr.fail(out, err)
	}
	if hdr.opcode == opInit || hdr.opcode == opDestroy {
		s.gate.Lock()
		defer s.gate.Unlock()
	} else {
		s.gate.RLock()
		defer s.gate.RUnlock()
	}
	switch {
	case s.closed:
		return hdr.fail(out, unix.ENODEV)
	case f.changes && s.fs.dir.o.ReadOnly:
		return hdr.fail(out, unix.EROFS)
	case hdr.opcode == opRead:
		return s.fs.read(&hdr, in, out)
	case hdr.opcode == opWrite:
		return s.fs.write(&hdr, in, out)
	case hdr.opcode == opInit || hdr.opcode == opDestroy:
		s.fs.clear()
	}
	return s.pass(&hdr, f, in, out)
}

// pass has go-fuse answer a request, from and to memory of its own.
func (s *Session) pass(hdr *header, f *form, in, out [][]byte) int {
	if hdr.length > maxMessage {
		return hdr.fail(out, unix.EMSGSIZE)
	}
	buf := scratches.Get().(*scratch)
	defer scratches.Put(buf)
	msg := buf.in[:hdr.length]
	if copyOut(msg, in, 0) != len(msg) {
		return hdr.fail(out, unix.EINVAL)
	}
	hdr.put(msg)
	room := min(total(out), maxMessage)
	if err := f.check(hdr.opcode, msg, room); err != nil {
		return hdr.fail(out, err)
	}
	n, status := s.proto.HandleRequest([][]byte{msg}, [][]byte{buf.out[:]})
	switch {
	case f.noReply:
		return 0
	case !status.Ok() || n < outHeaderSize:
		return hdr.fail(out, unix.EIO)
	case n > room:
		return hdr.fail(out, unix.ERANGE)
	}
	return copyIn(out, buf.out[:n])
}

// check looks at a request in msg before go-fuse does: the lengths, that names end, and that the reply has room. It lowers a size that was asked for.
func (f *form) check(op uint32, msg []byte, room int) error {
	if op == opInit {
		if major := binary.LittleEndian.Uint32(msg[headerSize:]); major != 7 {
			return unix.EPROTO
		}
		if minor := binary.LittleEndian.Uint32(msg[headerSize+4:]); minor < 27 {
			return unix.EPROTO // Linux 4.18: before virtio-fs
		}
	}
	rest := msg[headerSize+f.args:]
	for range f.names {
		i := 0
		for i < len(rest) && rest[i] != 0 {
			i++
		}
		if i == len(rest) {
			return unix.EINVAL
		}
		rest = rest[i+1:]
	}
	if len(rest) > 0 && !f.rest {
		return unix.EINVAL
	}
	if op == opSetxattr && uint64(binary.LittleEndian.Uint32(msg[headerSize:])) != uint64(len(rest)) {
		return unix.EINVAL
	}
	if f.noReply {
		return nil
	}
	if room < outHeaderSize+f.reply {
		return unix.EINVAL
	}
	if !f.variable {
		return nil
	}
	at, limit := headerSize, maxXattr
	if op == opReaddir || op == opReaddirplus {
		at, limit = headerSize+16, maxMessage
	}
	size := binary.LittleEndian.Uint32(msg[at:])
	if size == 0 && limit == maxXattr {
		if room < outHeaderSize+8 { // struct fuse_getxattr_out
			return unix.EINVAL
		}
		return nil
	}
	size = min(size, uint32(limit), uint32(room-outHeaderSize))
	if size == 0 {
		return unix.EINVAL
	}
	binary.LittleEndian.PutUint32(msg[at:], size)
	return nil
}

// header is a copy of what is checked of struct fuse_in_header.
type header struct {
	length, opcode uint32
	unique, node   uint64
	extensions     uint16
	sent           int // bytes in the request
}

// read reports whether there is a header.
func (h *header) read(in [][]byte) bool {
	var b [headerSize]byte
	if copyOut(b[:], in, 0) < len(b) {
		return false
	}
	le := binary.LittleEndian
	h.length, h.opcode = le.Uint32(b[0:]), le.Uint32(b[4:])
	h.unique, h.node = le.Uint64(b[8:]), le.Uint64(b[16:])
	h.extensions = le.Uint16(b[36:])
	h.sent = total(in)
	if h.node == fuse.FUSE_ROOT_ID {
		h.node = rootID
	}
	return true
}

// put writes what was checked over the copy of the message, which was read later and may differ.
func (h *header) put(msg []byte) {
	le := binary.LittleEndian
	le.PutUint32(msg[0:], h.length)
	le.PutUint32(msg[4:], h.opcode)
	le.PutUint64(msg[8:], h.unique)
	le.PutUint64(msg[16:], h.node)
	le.PutUint32(msg[36:], 0) // total_extlen and padding
}

// form returns the form of the request, or why it has none. What was sent beyond the header's length is left aside.
func (h *header) form() (*form, error) {
	if h.opcode >= uint32(len(forms)) || forms[h.opcode] == nil {
		return nil, unix.ENOSYS
	}
	f := forms[h.opcode]
	switch {
	case int64(h.length) < int64(headerSize+f.args), int64(h.length) > int64(h.sent):
		return f, unix.EINVAL
	case h.extensions != 0: // none is negotiated
		return f, unix.EINVAL
	case h.node > rootID: // go-fuse's own
		return f, unix.ESTALE
	}
	return f, nil
}

// fail writes a reply that is an error.
func (h *header) fail(out [][]byte, err error) int {
	if h.opcode == opForget || h.opcode == opBatchForget {
		return 0
	}
	return h.reply(out, -int32(status(err)), 0)
}

// reply writes the header of a reply with n bytes behind it, and returns the reply's length.
func (h *header) reply(out [][]byte, errno int32, n int) int {
	var b [outHeaderSize]byte
	if total(out) < len(b) {
		return 0
	}
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(len(b)+n))
	le.PutUint32(b[4:], uint32(errno))
	le.PutUint64(b[8:], h.unique)
	return copyIn(out, b[:]) + n
}

// status returns what the guest is told of an error.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if e, ok := err.(unix.Errno); ok {
		return fuse.Status(e)
	}
	return fuse.EIO
}

func total(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// copyOut copies from bufs, after skip bytes, and returns how much there was.
func copyOut(p []byte, bufs [][]byte, skip int) (n int) {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(p[n:], b[skip:])
		skip = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// copyIn copies to bufs and returns how much there was room for.
func copyIn(bufs [][]byte, p []byte) (n int) {
	for _, b := range bufs {
		n += copy(b, p[n:])
	}
	return n
}
