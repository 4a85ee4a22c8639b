package balloon

import "golang.org/x/sys/unix"

// discard lets the host take the pages when it needs them; MADV_DONTNEED would not give them up here.
func discard(b []byte) error { return unix.Madvise(b, unix.MADV_FREE) }
