package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// chunkSize is how many bytes of extents, laid end to end, have one checksum. It fits the cache of a CPU, and the place of an
// error is known as well.
const chunkSize = 1 << 20

func chunkCount(total int64) int64 { return (total + chunkSize - 1) / chunkSize }

// chunk begins skip bytes after the beginning of an extent and goes on in those that follow.
type chunk struct {
	extent int
	skip   int64
}

func cut(extents []Extent) []chunk {
	var chunks []chunk
	var at int64 // of the extent, in the extents laid end to end
	for i, e := range extents {
		for next := int64(len(chunks)) * chunkSize; next < at+e.Len; next += chunkSize {
			chunks = append(chunks, chunk{extent: i, skip: next - at})
		}
		at += e.Len
	}
	return chunks
}

// checksums reads the extents of a file and returns the checksum of each chunk. All CPUs take part.
func checksums(ctx context.Context, f *os.File, extents []Extent) (Checksums, error) {
	chunks := cut(extents)
	sums := make(Checksums, len(chunks))
	var (
		next  atomic.Int64
		mu    sync.Mutex
		first = len(chunks) // of the chunks that failed
		cause error
		wg    sync.WaitGroup
	)
	for range min(runtime.GOMAXPROCS(0), len(chunks)) {
		wg.Go(func() {
			buf := make([]byte, chunkSize)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(chunks) {
					return
				}
				err := ctx.Err()
				if err == nil {
					sums[i], err = chunks[i].sum(f, extents, buf)
				}
				if err != nil {
					mu.Lock()
					if i < first {
						first, cause = i, err
					}
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return sums, cause
}

func (c chunk) sum(f *os.File, extents []Extent, buf []byte) (uint32, error) {
	n := 0
	for i, skip := c.extent, c.skip; n < len(buf) && i < len(extents); i, skip = i+1, 0 {
		off := extents[i].Off + skip
		part := buf[n:min(int64(len(buf)), int64(n)+extents[i].Len-skip)]
		if err := readFull(f, part, off); err != nil {
			return 0, err
		}
		n += len(part)
	}
	return checksum(buf[:n]), nil
}

// readFull reads all of b at off. The error of a file that ends before is an io.ErrUnexpectedEOF.
func readFull(f *os.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &Error{File: filepath.Base(f.Name()), Offset: off + int64(n), Err: err}
}

// readError gives an error of reading its snapshot. That a file ends early means that somebody has truncated it.
func readError(id string, err error) error {
	var own *Error
	if !errors.As(err, &own) {
		return fail(id, "", err)
	}
	e := *own
	e.ID = id
	if errors.Is(err, io.ErrUnexpectedEOF) {
		e.Reason, e.Err = "file ends here", ErrCorrupt
	}
	return &e
}

// compare returns at what offset the first chunk begins that has not the checksum it must have, and what differs.
func compare(extents []Extent, got, want Checksums) (off int64, reason string) {
	for i, c := range cut(extents) {
		if got[i] != want[i] {
			n := min(chunkSize, total(extents)-int64(i)*chunkSize)
			return extents[c.extent].Off + c.skip, mismatch(n, got[i], want[i])
		}
	}
	return 0, ""
}

func mismatch(n int64, got, want uint32) string {
	return fmt.Sprintf("checksum of the next %d bytes is crc32c:%08x instead of %08x", n, got, want)
}

func total(extents []Extent) (n int64) {
	for _, e := range extents {
		n += e.Len
	}
	return n
}

// strayData returns where in a file there is something other than zeros outside the extents, -1 if nowhere. Holes are not read.
func strayData(ctx context.Context, f *os.File, extents []Extent) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return -1, err
	}
	buf, zeros := make([]byte, 256<<10), make([]byte, 256<<10)
	from := int64(0)
	for i := 0; i <= len(extents); i++ {
		to, next := st.Size(), st.Size()
		if i < len(extents) {
			to, next = extents[i].Off, extents[i].Off+extents[i].Len
		}
		for from < to {
			if err := ctx.Err(); err != nil {
				return -1, err
			}
			data, end, err := nextData(f, from, to)
			if err != nil {
				return -1, err
			}
			for data < end {
				b := buf[:min(int64(len(buf)), end-data)]
				if err := readFull(f, b, data); err != nil {
					return -1, err
				}
				if !bytes.Equal(b, zeros[:len(b)]) {
					return data + int64(bytes.IndexFunc(b, func(r rune) bool { return r != 0 })), nil
				}
				data += int64(len(b))
			}
			from = end
		}
		from = next
	}
	return -1, nil
}

// nextData returns the first range of data of a sparse file within [from, to), which is empty at to if there are only holes. Where
// the file system does not know its holes, all is data.
func nextData(f *os.File, from, to int64) (start, end int64, err error) {
	fd := int(f.Fd())
	start, err = unix.Seek(fd, from, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return to, to, nil
	case errors.Is(err, unix.EINVAL):
		return from, to, nil
	case err != nil:
		return 0, 0, os.NewSyscallError("lseek", err)
	case start >= to:
		return to, to, nil
	}
	if end, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	return start, min(end, to), nil
}
