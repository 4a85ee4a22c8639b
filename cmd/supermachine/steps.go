package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// steps shows what is being done, one thing after another: on a terminal with the time that it takes, in a log a line for each.
type steps struct {
	w       io.Writer // nil: show nothing
	subject string
	width   func() int // of the terminal; nil in a log

	mu    sync.Mutex
	now   string // what is being done
	since time.Time
	stop  chan struct{} // ends the redrawing
}

func newSteps(w io.Writer, subject string, quiet bool) *steps {
	if quiet {
		return &steps{}
	}
	s := &steps{w: w, subject: subject}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.width = func() int {
			cols, _, err := term.GetSize(int(f.Fd()))
			if err != nil || cols <= 0 {
				return 80
			}
			return cols
		}
	}
	return s
}

// note says something that takes no time.
func (s *steps) note(text string) {
	if s.w != nil {
		fmt.Fprintf(s.w, "%s: %s\n", s.subject, text)
	}
}

// step says what is done from now on.
func (s *steps) step(text string) {
	text = oneLine(text)
	if s.width == nil {
		s.note(text)
		return
	}
	s.done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.since, s.stop = text, time.Now(), make(chan struct{})
	s.draw("")
	go s.redraw(s.stop)
}

func (s *steps) redraw(stop chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if s.stop == stop { // this step is still the one that is shown
			s.draw("")
		}
		s.mu.Unlock()
	}
}

// done leaves the line of the last step as it is, also after a failure.
func (s *steps) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return
	}
	close(s.stop)
	s.draw("\n")
	s.stop = nil
}

// draw writes the line over itself. A line that wrapped could not be written over, so it is cut.
func (s *steps) draw(end string) {
	elapsed := fmt.Sprintf("  %.1f s", time.Since(s.since).Seconds())
	line := cut(s.subject+": "+s.now, max(s.width()-len(elapsed)-1, 1))
	fmt.Fprintf(s.w, "\r\x1b[K%s%s%s", line, elapsed, end)
}

// oneLine makes one line of a text that may have several, such as a command.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// cut shortens a text to n characters.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
