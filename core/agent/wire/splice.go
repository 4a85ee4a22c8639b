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
		err := Copy(dst, src)
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

// Copy copies until src ends, which is no error. Its buffer grows with what src yields, so that thousands of idle or slow streams cost little.
func Copy(dst io.Writer, src io.Reader) error {
	buf := make([]byte, smallChunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n == len(buf) && n < MaxData {
			buf = make([]byte, 4*n)
		}
	}
}
