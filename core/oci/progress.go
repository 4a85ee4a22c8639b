package oci

import (
	"sync"
	"time"
)

// EventKind says what an Event reports.
type EventKind int

// The kinds of events, in the order in which a pull reports them first.
const (
	EventResolved EventKind = iota // the manifest is known: Layers and Total are
	EventFetch                     // Done of Total bytes of a layer's blob have arrived
	EventConvert                   // Done of Total bytes of a layer's blob have been converted
	EventDone                      // the image is in the store
)

// Event is one step of a pull.
type Event struct {
	Kind   EventKind
	Digest string // of the layer's blob, or of the manifest for EventResolved and EventDone
	Layer  int    // index of the layer, from 0
	Layers int    // how many there are
	Done   int64  // bytes
	Total  int64  // bytes; of all layers for EventResolved and EventDone
}

// eventInterval keeps events of one layer apart.
const eventInterval = 50 * time.Millisecond

// progress reports events to the caller, one at a time and not too many. A nil func costs nothing.
type progress struct {
	f     func(Event)
	mu    sync.Mutex
	image *resolved
}

func newProgress(f func(Event)) *progress { return &progress{f: f} }

func (p *progress) start(image *resolved) {
	p.image = image
	p.whole(EventResolved)
}

func (p *progress) end() { p.whole(EventDone) }

func (p *progress) whole(kind EventKind) {
	if p.f == nil {
		return
	}
	e := Event{Kind: kind, Digest: p.image.digest, Layers: len(p.image.layers)}
	for _, l := range p.image.layers {
		e.Total += l.Size
	}
	if kind == EventDone {
		e.Done = e.Total
	}
	p.send(e)
}

func (p *progress) send(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.f(e)
}

// layer returns a function that reports how far a layer is. It may be called by one goroutine at a time.
func (p *progress) layer(kind EventKind, i int) func(done int64) {
	if p.f == nil {
		return func(int64) {}
	}
	l := p.image.layers[i]
	e := Event{Kind: kind, Digest: l.Digest.String(), Layer: i, Layers: len(p.image.layers), Total: l.Size}
	var last time.Time
	complete := false
	return func(done int64) {
		now := time.Now()
		if complete || done < e.Total && now.Sub(last) < eventInterval {
			return
		}
		last, complete = now, done >= e.Total
		e.Done = done
		p.send(e)
	}
}
