// A second library made by Go, always busy, which programs of the tests load beside ours: two runtimes share the program's signals.
package main

import "C"

import (
	"sync/atomic"
	"time"
)

var ticks atomic.Int64

func init() {
	for range 4 {
		go func() {
			for {
				b := make([]byte, 1<<16)
				b[ticks.Add(1)%int64(len(b))] = 1
				time.Sleep(200 * time.Microsecond)
			}
		}()
	}
}

//export second_ticks
func second_ticks() int64 { return ticks.Load() }

func main() {}
