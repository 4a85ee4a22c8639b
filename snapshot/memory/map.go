package memory

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const readWrite = unix.PROT_READ | unix.PROT_WRITE

// Reserve returns memory of zeros for regions of the given sizes in bytes. Pages appear when they are touched; core dumps and forked
// children do not get them. The caller gives it back with Release.
func Reserve(sizes []int64) ([][]byte, error) {
	if _, err := newLayout(sizes); err != nil {
		return nil, err
	}
	mem := make([][]byte, 0, len(sizes))
	for _, n := range sizes {
		b, err := unix.Mmap(-1, 0, int(n), readWrite, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reserve %d bytes of guest memory: %w", n, err), Release(mem))
		}
		mem = append(mem, b)
		keepPrivate(b)
	}
	return mem, nil
}

// Release unmaps memory that came from Reserve, whatever was mapped into it. The slices must not be touched any more.
func Release(mem [][]byte) error {
	var errs []error
	for _, b := range mem {
		errs = append(errs, os.NewSyscallError("munmap", unix.Munmap(b)))
	}
	return errors.Join(errs...)
}

// Map replaces the content of dst by the image's, copy-on-write: what is written to dst stays in dst. dst must be readable and writable
// mappings with the sizes of the image's regions. They remain mapped after an error, with undefined content.
//
// Parts without content get small pages only, so that one touched byte does not cost each clone 2 MiB.
func (i *Image) Map(dst [][]byte) error {
	if err := i.layout.check(dst); err != nil {
		return err
	}
	if err := i.Retain(); err != nil {
		return err
	}
	defer i.done()
	plan, err := i.mappings()
	if err != nil {
		return err
	}
	for _, b := range dst {
		if err := mapFixed(b, -1, 0, readWrite, unix.MAP_ANONYMOUS); err != nil {
			return err
		}
		_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // fails in kernels without huge pages
	}
	return i.layout.mapOver(dst, plan, readWrite)
}

// mapOver maps the pieces of a plan over parts of dst.
func (l layout) mapOver(dst [][]byte, plan []piece, prot int) error {
	for _, p := range plan {
		for off, b := range l.parts(dst, Extent{Off: p.off, Len: p.len}) {
			if err := mapFixed(b, int(p.file.Fd()), off, prot, 0); err != nil {
				return err
			}
		}
	}
	for _, b := range dst {
		keepPrivate(b)
	}
	return nil
}

// keepPrivate keeps guest memory out of core dumps, so that a crash of the host program does not write it to disk, and out of forked children. Those
// could not run the VM, and a fork that shares the pages write-protects all of them: the VM would fault each one in again.
func keepPrivate(b []byte) {
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	_ = unix.Madvise(b, unix.MADV_DONTFORK)
}

// mapFixed replaces whatever is mapped at b.
func mapFixed(b []byte, fd int, off int64, prot, flags int) error {
	flags |= unix.MAP_PRIVATE | unix.MAP_FIXED | unix.MAP_NORESERVE
	at := unsafe.Pointer(unsafe.SliceData(b))
	if _, err := unix.MmapPtr(fd, off, at, uintptr(len(b)), prot, flags); err != nil {
		return fmt.Errorf("map %d bytes of guest memory: %w", len(b), err)
	}
	return nil
}

// Reset undoes everything that was written to mem since Map filled it from this image: private pages are given back, and the
// image's show again. Nobody may write to mem meanwhile.
func (i *Image) Reset(mem [][]byte) error {
	if err := i.layout.check(mem); err != nil {
		return err
	}
	for _, b := range mem {
		if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("reset guest memory: %w", err)
		}
	}
	return nil
}
