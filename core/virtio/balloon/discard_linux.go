package balloon

import "golang.org/x/sys/unix"

// discard drops private pages: anonymous memory reads as zeros afterwards, a private mapping of a file as the file. On shared
// mappings it would release nothing.
func discard(b []byte) error { return unix.Madvise(b, unix.MADV_DONTNEED) }
