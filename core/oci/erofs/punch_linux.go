package erofs

import (
	"os"

	"golang.org/x/sys/unix"
)

// punchHole gives a range of the file back to the file system. Not every one
// can; the range then stays as unused space.
func punchHole(f *os.File, off, n int64) {
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
