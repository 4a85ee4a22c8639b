// Package initramfs writes cpio archives in the "newc" format that the Linux kernel unpacks as its first root file system
// (Documentation/driver-api/early-userspace/buffer-format.rst). The same files give the same bytes.
package initramfs

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
)

// File is one entry of an archive.
type File struct {
	Name string // path without a leading slash, such as "init" or "dev/console"
	Mode uint32 // type and permission bits as in st_mode, such as 0o100755 for an executable
	Data []byte // contents of a regular file, target of a symbolic link
	// Major and Minor are the numbers of a device node.
	Major, Minor uint32
}

// The type bits of File.Mode.
const (
	TypeDirectory = 0o040000
	TypeRegular   = 0o100000
	TypeSymlink   = 0o120000
	TypeCharacter = 0o020000
	typeMask      = 0o170000
)

const trailer = "TRAILER!!!"

// Write writes the archive of files to w, sorted by name, with every parent directory that is not among them. Owners are root and
// times zero, so that nothing but the files decides the bytes.
func Write(w io.Writer, files []File) error {
	all := map[string]File{}
	for _, f := range files {
		name := path.Clean(f.Name)
		if name != f.Name || name == "." || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "../") || name == trailer {
			return fmt.Errorf("initramfs: %q is not a clean relative path", f.Name)
		}
		if _, dup := all[name]; dup {
			return fmt.Errorf("initramfs: %q is there twice", name)
		}
		if uint64(len(f.Data)) > 1<<32-1 {
			return fmt.Errorf("initramfs: %q is larger than the format allows", name)
		}
		all[name] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			parent, ok := all[dir]
			if !ok {
				all[dir] = File{Name: dir, Mode: TypeDirectory | 0o755}
			} else if parent.Mode&typeMask != TypeDirectory {
				return fmt.Errorf("initramfs: %q lies below %q, which is not a directory", f.Name, dir)
			}
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	sort.Strings(names) // parents sort before what lies in them
	for i, name := range names {
		if err := writeEntry(w, uint32(i+1), all[name]); err != nil {
			return err
		}
	}
	return writeEntry(w, 0, File{Name: trailer})
}

func writeEntry(w io.Writer, ino uint32, f File) error {
	links := 1
	if f.Mode&typeMask == TypeDirectory {
		links = 2
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, f.Mode, 0, 0, links, 0, len(f.Data), 0, 0, f.Major, f.Minor, len(f.Name)+1, 0, f.Name)
	pad(&b)
	if _, err := w.Write(b.Bytes()); err != nil {
		return err
	}
	if _, err := w.Write(f.Data); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, -len(f.Data)&3))
	return err
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }
