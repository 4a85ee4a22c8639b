package block

import (
	"errors"
	"io"
	"os"
)

// sysVec is empty: on macOS each piece of guest memory is one system call.
type sysVec struct{}

// readFile fills the next n bytes of v from f at off.
func (v *Vec) readFile(f *os.File, off, n int64) error {
	for n > 0 {
		b := v.Next(n)
		if b == nil {
			return io.ErrShortBuffer
		}
		if _, err := f.ReadAt(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// writeFile writes the next n bytes of v to f at off.
func (v *Vec) writeFile(f *os.File, off, n int64) error {
	for n > 0 {
		b := v.Next(n)
		if b == nil {
			return io.ErrShortBuffer
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// punch is unsupported: F_PUNCHHOLE wants the file system's own alignment, so callers write zeros instead.
func punch(*os.File, int64, int64) error { return errors.ErrUnsupported }

// zeroRange has no counterpart on macOS; callers write zeros instead.
func zeroRange(*os.File, int64, int64) error { return errors.ErrUnsupported }

func datasync(f *os.File) error { return f.Sync() }
