package wire

import (
	"io"
	"net"
	"sync"
)

// Splice copies bytes both ways between two connections until both directions have ended, passing on half-closes. The caller closes
// the connections.
func Splice(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Add(2)
	half := func(dst, src net.Conn) {
		defer wg.Done()
		_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 64<<10))
		if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			c.CloseWrite()
			return
		}
		dst.Close()
		src.Close()
	}
	go half(a, b)
	go half(b, a)
	wg.Wait()
}
