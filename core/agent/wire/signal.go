package wire

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Numbers of Linux's real-time signals, as the C libraries count them.
const (
	sigRTMin  = 34
	MaxSignal = 64 // SIGRTMAX
)

// ParseSignal returns the number of a signal by its name, with or without SIG, in any case, such as "TERM", "SIGTERM" or "RTMIN+3", or by its
// number in decimal; false if there is no such signal.
func ParseSignal(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n <= MaxSignal
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if offset, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return realTime(sigRTMin, offset, '+')
	}
	if offset, ok := strings.CutPrefix(name, "RTMAX"); ok {
		return realTime(MaxSignal, offset, '-')
	}
	n := int(unix.SignalNum("SIG" + name))
	return n, n != 0
}

// realTime returns base and an offset of the given sign, none if offset is empty.
func realTime(base int, offset string, sign byte) (int, bool) {
	if offset == "" {
		return base, true
	}
	n, err := strconv.Atoi(offset)
	n += base
	return n, err == nil && offset[0] == sign && n >= sigRTMin && n <= MaxSignal
}
