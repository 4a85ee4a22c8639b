package api

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Kind is what a handle stands for.
type Kind uint8

// The kinds of handles.
const (
	KindNone Kind = iota
	KindStore
	KindImage
	KindVM
	KindExec
	KindForward
	KindFile
	KindEntries
	KindWatch
	KindPool
	KindQueue
	KindCall
)

var kindNames = [...]string{"none", "store", "image", "vm", "exec", "forward", "file", "entries", "watch", "pool", "queue", "call"}

// String returns the kind's name, such as "vm".
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// handles gives out tokens for objects. A token is never used twice, so one that was closed is known as such for ever.
type handles struct {
	mu   sync.RWMutex
	next uint64
	open map[uint64]any
}

// The upper byte of a token is its kind. The rest is a number that grows from a random start: another process's tokens are hardly ever
// taken for this one's.
const (
	kindShift = 56
	startBits = 40
)

func (h *handles) init() {
	h.open = map[uint64]any{}
	h.next = rand.Uint64N(1<<startBits) + 1
}

// put returns a new token for the object.
func (h *handles) put(k Kind, object any) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	token := uint64(k)<<kindShift | h.next
	h.next++
	h.open[token] = object
	return token
}

// get returns the object behind a token of the kind.
func (h *handles) get(token uint64, k Kind) (any, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	object, ok := h.open[token]
	if err := checkToken(token, k, ok); err != nil {
		return nil, err
	}
	return object, nil
}

// take returns the object behind a token of the kind, and closes the token.
func (h *handles) take(token uint64, k Kind) (any, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	object, ok := h.open[token]
	if err := checkToken(token, k, ok); err != nil {
		return nil, err
	}
	delete(h.open, token)
	return object, nil
}

func checkToken(token uint64, want Kind, open bool) error {
	switch is := Kind(token >> kindShift); {
	case token == 0:
		return fmt.Errorf("a handle of a %v is needed, and 0 was given", want)
	case is == KindNone || int(is) >= len(kindNames):
		return fmt.Errorf("%#x is no handle", token)
	case is != want:
		return fmt.Errorf("a handle of a %v is needed, and one of a %v was given", want, is)
	case !open:
		return errClosedHandle(want)
	}
	return nil
}

func errClosedHandle(k Kind) error {
	return fmt.Errorf("the %v is closed, or the handle is of another process", k)
}
