package hostdir

import (
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how many directories are opened again to reach a node; also where what is known of parents is old and has become a ring.
const maxDepth = 4096

// node is a file that the guest refers to. All fields but the first three are protected by table.mu.
type node struct {
	id   uint64
	key  key
	kind uint32 // S_IFMT bits

	lookups  uint64 // what the guest will give back by FORGET; 0: it is in no map any more
	fd       int    // O_PATH, or -1
	users    int    // requests, handles and others that need fd to stay
	parent   *node  // where it was found last; nil for the root
	name     string
	followed bool // name is a link that leads here (Follow)
	nameless bool // removed under that name: fd could not be opened again

	prev, next *node // in table.idle
}

// table holds what a session keeps for the guest.
type table struct {
	maxFiles, maxNodes int

	mu      sync.Mutex
	root    *node
	base    uint64 // ids are this plus a count
	count   uint64
	files   int // descriptors of nodes and handles, the root's not counted
	byID    map[uint64]*node
	byKey   map[key]*node
	handles map[uint64]*handle
	idle    node // ring of the nodes whose descriptors may be closed; next is the one used last
}

// init empties the table. Ids begin at a place of their own each time: a guest that still knows those of an earlier session, as one restored from a
// snapshot does, then finds none of them (ESTALE) rather than other files.
func (t *table) init(root *node) {
	t.root = root
	t.base, t.count = (rand.Uint64()>>2)&^(1<<32-1)|1<<61, 0
	t.files = 0
	t.byID, t.byKey, t.handles = map[uint64]*node{}, map[key]*node{}, map[uint64]*handle{}
	t.idle.prev, t.idle.next = &t.idle, &t.idle
	t.byID[root.id], t.byKey[root.key] = root, root
}

// clear closes everything but the root's descriptor. Nothing else may be running.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.handles {
		_ = unix.Close(h.fd)
		t.drop(h.node)
	}
	for _, n := range t.byID {
		if n != t.root && n.fd >= 0 {
			_ = unix.Close(n.fd)
		}
	}
	t.init(t.root)
}

// newID is called with mu held. The count does not come around: 2^60 requests take longer than machines last.
func (t *table) newID() uint64 {
	t.count++
	return t.base + t.count
}

// reserve counts a descriptor that is going to be opened, closing others where there are too many. It is called with mu held.
func (t *table) reserve() error {
	for t.files >= t.maxFiles {
		last := t.idle.prev
		if last == &t.idle {
			return unix.ENFILE
		}
		last.unlink()
		t.closeFD(last)
	}
	t.files++
	return nil
}

// reserveFile is reserve for callers without mu.
func (t *table) reserveFile() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reserve()
}

// unreserve takes back reserveFile, closing fd unless it is negative.
func (t *table) unreserve(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	t.mu.Lock()
	t.files--
	t.mu.Unlock()
}

func (t *table) closeFD(n *node) {
	_ = unix.Close(n.fd)
	n.fd = -1
	t.files--
}

func (n *node) unlink() {
	if n.next != nil {
		n.prev.next, n.next.prev = n.next, n.prev
		n.prev, n.next = nil, nil
	}
}

// hold keeps n.fd open until drop; with mu held.
func (t *table) hold(n *node) {
	n.users++
	n.unlink()
}

// drop takes back a hold; with mu held.
func (t *table) drop(n *node) {
	if n.users--; n.users > 0 || n.fd < 0 {
		return
	}
	switch {
	case n.lookups == 0:
		t.closeFD(n)
	case !n.nameless:
		n.prev, n.next = &t.idle, t.idle.next
		n.prev.next, n.next.prev = n, n
	}
}

// get returns the node of an id with its descriptor open, until put.
func (t *table) get(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	return n, t.use(n)
}

// use holds n with its descriptor open; with mu held.
func (t *table) use(n *node) error {
	t.hold(n)
	if err := t.ensure(n); err != nil {
		t.drop(n)
		return err
	}
	return nil
}

func (t *table) put(n *node) {
	t.mu.Lock()
	t.drop(n)
	t.mu.Unlock()
}

// ensure opens n's descriptor again if it was closed, and those of the directories above it where that is needed; with mu held.
func (t *table) ensure(n *node) error {
	var chain []*node
	above := n
	for ; above.fd < 0; above = above.parent {
		if len(chain) == maxDepth || above.parent == nil {
			return unix.ESTALE
		}
		chain = append(chain, above)
	}
	t.hold(above)
	for i := len(chain) - 1; i >= 0; i-- {
		below := chain[i]
		err := t.openAgain(above, below)
		if err == nil {
			t.hold(below)
		}
		t.drop(above)
		if err != nil {
			return err
		}
		above = below
	}
	t.drop(above)
	return nil
}

func (t *table) openAgain(parent, n *node) error {
	if err := t.reserve(); err != nil {
		return err
	}
	var fd int
	var err error
	if n.followed {
		fd, err = openFollow(parent.fd, n.name)
	} else {
		fd, err = openPath(parent.fd, n.name)
	}
	if err != nil {
		t.files--
		switch err {
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
			return unix.ESTALE
		}
		return err
	}
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil || keyOf(&st) != n.key || uint32(st.Mode)&unix.S_IFMT != n.kind {
		_ = unix.Close(fd)
		t.files--
		return unix.ESTALE
	}
	n.fd = fd
	return nil
}

// found is what a lookup found: its descriptor, for which a file was reserved and which enter takes over, and where.
type found struct {
	parent   *node
	name     string
	fd       int
	followed bool
	nameless bool
	st       unix.Statx_t
}

// enter returns the node of what was found and counts a lookup by the guest. On failure the descriptor is closed.
func (t *table) enter(f *found) (*node, error) {
	k := keyOf(&f.st)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[k]
	if n == nil {
		if len(t.byID) >= t.maxNodes {
			_ = unix.Close(f.fd)
			t.files--
			return nil, unix.ENFILE
		}
		n = &node{id: t.newID(), key: k, kind: uint32(f.st.Mode) & unix.S_IFMT, fd: -1}
		t.byID[n.id], t.byKey[k] = n, n
	}
	if n == t.root { // by a link that is followed; Linux takes the root for a mistake there
		_ = unix.Close(f.fd)
		t.files--
		return nil, unix.ELOOP
	}
	t.hold(n)
	if n.fd >= 0 {
		_ = unix.Close(f.fd)
		t.files--
	} else {
		n.fd = f.fd
	}
	n.parent, n.name, n.followed, n.nameless = f.parent, f.name, f.followed, f.nameless
	n.lookups++
	t.drop(n)
	return n, nil
}

// forget takes back lookups; a guest that gives back more than it made gives back all.
func (t *table) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || n == t.root {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	if n.lookups > 0 {
		return
	}
	delete(t.byID, n.id)
	delete(t.byKey, n.key)
	t.hold(n)
	t.drop(n)
}

// known returns the node of a name in a directory, held with its descriptor open, or nil if the guest does not refer to it. What becomes of the
// name is told by moved or removed.
func (t *table) known(dir *node, name string) *node {
	var st unix.Statx_t
	if statAt(dir.fd, name, &st) != nil {
		return nil
	}
	k := keyOf(&st)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[k]
	if n == nil || n == t.root || t.use(n) != nil {
		return nil
	}
	return n
}

// moved tells that n, which may be nil, has another name now.
func (t *table) moved(n, dir *node, name string) {
	if n == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.parent, n.name, n.followed, n.nameless = dir, name, false, false
}

// removed tells that n, which may be nil, lost a name. One that it may have besides is not known.
func (t *table) removed(n, dir *node, name string) {
	if n == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.parent == dir && n.name == name {
		n.nameless = true
	}
}

// release is put for a node that may be nil.
func (t *table) release(n *node) {
	if n != nil {
		t.put(n)
	}
}

// handle is an open file or directory.
type handle struct {
	fd       int
	node     *node // held
	writable bool
	users    int  // requests; under table.mu
	released bool // by the guest, or about to be

	mu  sync.Mutex // protects dir
	dir *dirStream // nil for files
}

// addHandle takes over fd, for which a file was reserved, and a hold on n.
func (t *table) addHandle(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.newID()
	t.handles[id] = h
	return id
}

// handle returns the handle of an id until done; directories and files do not answer for each other.
func (t *table) handle(id uint64, dir bool) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	if h == nil || (h.dir != nil) != dir {
		return nil, unix.EBADF
	}
	h.users++
	return h, nil
}

func (t *table) done(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h.users--
	t.closeHandle(h)
}

func (t *table) releaseHandle(id uint64, dir bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	if h == nil || (h.dir != nil) != dir {
		return
	}
	delete(t.handles, id)
	h.released = true
	t.closeHandle(h)
}

func (t *table) closeHandle(h *handle) {
	if !h.released || h.users > 0 {
		return
	}
	_ = unix.Close(h.fd)
	t.files--
	t.drop(h.node)
}
