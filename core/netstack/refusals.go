package netstack

import (
	"log/slog"
	"sync"
	"time"
)

// A guest's refusals are logged maxRefusals at once and one for each refusalEvery after that.
const (
	maxRefusals  = 20
	refusalEvery = time.Second
)

// refusals logs what was refused, bounded, since a guest decides how much that is.
type refusals struct {
	to *slog.Logger

	mu      sync.Mutex
	used    int
	at      time.Time // when used was last reduced
	skipped int
}

func (r *refusals) report(proto, to, reason string) {
	if r.to == nil {
		return
	}
	r.mu.Lock()
	now := time.Now()
	if n := int(now.Sub(r.at) / refusalEvery); n > 0 {
		r.used, r.at = max(0, r.used-n), now
	}
	if r.used == maxRefusals {
		r.skipped++
		r.mu.Unlock()
		return
	}
	r.used++
	skipped := r.skipped
	r.skipped = 0
	r.mu.Unlock()
	r.to.Warn("connection of the guest refused", "protocol", proto, "to", to, "reason", reason, "unlogged", skipped)
}
