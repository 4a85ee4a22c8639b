package wire

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Counts are the bytes that have gone through spliced connections.
type Counts struct{ AToB, BToA atomic.Int64 }

// Splice copies bytes both ways between two connections until both directions have ended, passing on half-closes. The caller closes
// the connections.
func Splice(a, b net.Conn) { SpliceCounted(a, b, new(Counts)) }

// SpliceCounted is Splice, and adds to the counts as it goes.
func SpliceCounted(a, b net.Conn, n *Counts) {
	var wg sync.WaitGroup
	wg.Add(2)
	half := func(dst, src net.Conn, n *atomic.Int64) {
		defer wg.Done()
		err := Copy(countingWriter{dst, n}, src)
		if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			c.CloseWrite()
			return
		}
		dst.Close()
		src.Close()
	}
	go half(a, b, &n.BToA)
	go half(b, a, &n.AToB)
	wg.Wait()
}

type countingWriter struct {
	io.Writer
	n *atomic.Int64
}

func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// smallBuffers are what most streams make do with.
var smallBuffers = sync.Pool{New: func() any { return new([smallChunk]byte) }}

// Copy copies until src ends, which is no error. Its buffer grows with what src yields, so that thousands of idle or slow streams cost little.
func Copy(dst io.Writer, src io.Reader) error {
	first := smallBuffers.Get().(*[smallChunk]byte)
	defer smallBuffers.Put(first)
	buf := first[:]
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
