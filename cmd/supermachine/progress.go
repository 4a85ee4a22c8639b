package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/supermachine/supermachine/core/oci"
)

// progress shows a pull: a bar for each layer on a terminal, a line for each step in a log, nothing where there is nothing to do.
type progress struct {
	w   io.Writer
	ref string

	mu   sync.Mutex
	bars *mpb.Progress // nil without a terminal
	all  map[string]*mpb.Bar
	said map[string]bool
}

func newProgress(w io.Writer, ref string) *progress {
	p := &progress{w: w, ref: ref, all: map[string]*mpb.Bar{}, said: map[string]bool{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
	}
	return p
}

func (p *progress) event(e oci.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.Kind {
	case oci.EventResolved:
		p.say("resolved", "%s: %d layers, %s", p.ref, e.Layers, size(e.Total))
	case oci.EventFetch, oci.EventConvert:
		verb := "fetch"
		if e.Kind == oci.EventConvert {
			verb = "convert"
		}
		if p.bars == nil {
			if e.Done == e.Total {
				p.say(verb+e.Digest, "layer %d/%d %s: %s done, %s", e.Layer+1, e.Layers, shortDigest(e.Digest), verb, size(e.Total))
			}
			return
		}
		p.bar(verb, e).SetCurrent(e.Done)
	case oci.EventDone:
		p.say("done", "%s: ready, %s", p.ref, shortDigest(e.Digest))
	}
}

// say prints a line once, above the bars.
func (p *progress) say(key, format string, args ...any) {
	if p.said[key] {
		return
	}
	p.said[key] = true
	w := p.w
	if p.bars != nil {
		w = p.bars
	}
	fmt.Fprintf(w, format+"\n", args...)
}

func (p *progress) bar(verb string, e oci.Event) *mpb.Bar {
	key := verb + e.Digest
	if b := p.all[key]; b != nil {
		return b
	}
	b := p.bars.AddBar(max(e.Total, 1),
		mpb.PrependDecorators(decor.Name(shortDigest(e.Digest)+" "), decor.Name(verb, decor.WC{W: 8})),
		mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f")),
	)
	p.all[key] = b
	return b
}

// done leaves the terminal tidy, also after a failure.
func (p *progress) done() {
	if p.bars == nil {
		return
	}
	for _, b := range p.all {
		b.Abort(false)
	}
	p.bars.Wait()
}
