package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pagemap tells which pages of this process's memory are there, and of what kind.
type pagemap struct {
	file    *os.File
	scan    bool // the kernel has the PAGEMAP_SCAN ioctl (Linux 6.7)
	regions []pageRegion
	entries []byte
}

// pageKind is what a page is in a private mapping.
type pageKind uint8

const (
	pageShared   pageKind = iota // of the mapped file, or the kernel's page of zeros: nothing was written
	pagePrivate                  // written, and now the mapping's own
	pageDoubtful                 // the page of zeros, or a private one that a child process shares for now
)

// Layouts and numbers of linux/fs.h.
type (
	pageRegion struct{ start, end, categories uint64 }
	scanArg    struct {
		size, flags, start, end, walkEnd, vec, vecLen, maxPages     uint64
		inverted, categoryMask, categoryAnyofMask, categoryReturned uint64
	}
)

const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	categoryFile    = 1 << 2
	categoryPresent = 1 << 3
	categorySwapped = 1 << 4
	categoryZero    = 1 << 5

	entryExclusive = 1 << 56
	entryFile      = 1 << 61
	entrySwapped   = 1 << 62
	entryPresent   = 1 << 63
)

// noPagemapScan makes tests take the way of older kernels.
var noPagemapScan = false

func openPagemap() (*pagemap, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	return &pagemap{file: f, scan: !noPagemapScan}, nil
}

func (p *pagemap) close() { _ = p.file.Close() }

// runs calls yield for runs of pages in mem that are present or swapped, ascending; neighbours may be of one kind. With private,
// it may leave out shared ones. Offsets are image offsets.
func (p *pagemap) runs(l layout, mem [][]byte, private bool, yield func(off, n int64, kind pageKind)) error {
	for i, b := range mem {
		if err := p.region(b, private, func(off, n int64, kind pageKind) { yield(l.starts[i]+off, n, kind) }); err != nil {
			return fmt.Errorf("look up pages of guest memory: %w", err)
		}
	}
	return nil
}

func (p *pagemap) region(b []byte, private bool, yield func(off, n int64, kind pageKind)) error {
	var done int64
	if p.scan {
		var err error
		done, err = p.scanRegion(b, private, yield)
		if err == nil {
			return nil
		}
		// Whatever keeps the ioctl from working, such as an old kernel or a filter of system calls, does not keep from reading.
		p.scan = false
	}
	return p.readRegion(b, done, yield)
}

// scanRegion returns up to where it came.
func (p *pagemap) scanRegion(b []byte, private bool, yield func(off, n int64, kind pageKind)) (int64, error) {
	if p.regions == nil {
		p.regions = make([]pageRegion, 2048)
	}
	base := uint64(address(b))
	arg := scanArg{
		size: uint64(unsafe.Sizeof(scanArg{})), start: base, end: base + uint64(len(b)),
		vec: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p.regions)))), vecLen: uint64(len(p.regions)),
		categoryAnyofMask: categoryPresent | categorySwapped, categoryReturned: categoryFile | categoryZero,
	}
	if private {
		arg.inverted = categoryFile | categoryZero
		arg.categoryMask = categoryFile | categoryZero
	}
	for arg.start < arg.end {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, p.file.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(p.regions)
		if errno == unix.EINTR {
			continue
		}
		next := arg.walkEnd
		if n > 0 && errno == 0 {
			// Linux up to 6.18 at least may report the end of an earlier part of its own work as walkEnd.
			next = max(next, p.regions[n-1].end)
		}
		if errno == 0 && next <= arg.start {
			errno = unix.EIO
		}
		if errno != 0 {
			return int64(arg.start - base), errno
		}
		for _, r := range p.regions[:n] {
			kind := pagePrivate
			if r.categories&(categoryFile|categoryZero) != 0 {
				kind = pageShared
			}
			yield(int64(r.start-base), int64(r.end-r.start), kind)
		}
		arg.start = next
	}
	return int64(len(b)), nil
}

func (p *pagemap) readRegion(b []byte, from int64, yield func(off, n int64, kind pageKind)) error {
	if p.entries == nil {
		p.entries = make([]byte, 128<<10)
	}
	base := int64(address(b))
	for at := from; at < int64(len(b)); {
		buf := p.entries[:min(int64(len(p.entries)), (int64(len(b))-at)/PageSize*8)]
		if _, err := p.file.ReadAt(buf, (base+at)/PageSize*8); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		pages := int64(len(buf) / 8)
		for i := int64(0); i < pages; {
			kind, ok := entryKind(binary.NativeEndian.Uint64(buf[i*8:]))
			first := i
			for i++; i < pages; i++ {
				if k, o := entryKind(binary.NativeEndian.Uint64(buf[i*8:])); k != kind || o != ok {
					break
				}
			}
			if ok {
				yield(at+first*PageSize, (i-first)*PageSize, kind)
			}
		}
		at += pages * PageSize
	}
	return nil
}

// entryKind reports false if there is no page.
func entryKind(e uint64) (pageKind, bool) {
	switch {
	case e&(entryPresent|entrySwapped) == 0:
		return 0, false
	case e&entryFile != 0:
		return pageShared, true
	case e&(entrySwapped|entryExclusive) != 0:
		return pagePrivate, true
	}
	return pageDoubtful, true
}

// PrivateBytes returns the bytes of mem that belong to it alone because they were written: what a clone costs the host.
// Memory that is in use meanwhile is counted roughly.
func PrivateBytes(mem [][]byte) (int64, error) {
	l, err := layoutOf(mem)
	if err != nil {
		return 0, err
	}
	p, err := openPagemap()
	if err != nil {
		return 0, err
	}
	defer p.close()
	var sum int64
	err = p.runs(l, mem, true, func(_, n int64, kind pageKind) {
		if kind == pagePrivate {
			sum += n
		}
	})
	return sum, err
}
