package erofs

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
)

// BlockSize is the size of a file system block in bytes.
const BlockSize = 4096

// Limits of the format, or of Linux where it allows less.
const (
	// MaxName is the longest name of a directory entry in bytes.
	MaxName = 255
	// MaxSymlink is the longest target of a symbolic link in bytes.
	MaxSymlink = BlockSize - 1
	// MaxXattrValue is the longest value of one extended attribute in bytes.
	MaxXattrValue = 1<<16 - 1
	// MaxXattrs is the room for all extended attributes of one inode, names included, in bytes.
	MaxXattrs = 64 << 10
)

const (
	blockBits   = 12
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	inodeSize   = 64
	slotSize    = 32
	direntSize  = 12

	compatChecksum = 0x1
	compatMtime    = 0x2
	incompatChunks = 0x4

	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4

	nullBlock = 0xFFFFFFFF

	// A chunk is the granularity of holes: 64 KiB unless the file is so large that its map would be.
	minChunkBits = 16
	maxChunks    = 1 << 16

	xattrHeader = 12
	xattrEntry  = 4
)

// File type bits of st_mode, as in Linux' stat.h.
const (
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
	modeType    = 0o170000
)

var le = binary.LittleEndian

// direntType maps st_mode's type bits to the file type of a directory entry.
var direntType = map[uint16]uint8{
	ModeRegular: 1, ModeDir: 2, ModeChar: 3, ModeBlock: 4, ModeFIFO: 5, ModeSocket: 6, ModeSymlink: 7,
}

// Rdev packs a device number as Linux' new_encode_dev does: 12 bits of major, 20 of minor.
func Rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// inodeRecord is an extended on-disk inode (struct erofs_inode_extended).
type inodeRecord struct {
	layout  uint16
	xattrs  int // bytes of the attribute area
	mode    uint16
	size    uint64
	u       uint32 // first data block, device number or chunk format
	ino     uint32
	uid     uint32
	gid     uint32
	mtime   int64
	mtimeNs uint32
	nlink   uint32
}

const nlinkOffset = 44

func (r *inodeRecord) put(p []byte) {
	le.PutUint16(p[0:], 1|r.layout<<1)
	if r.xattrs > 0 {
		le.PutUint16(p[2:], uint16((r.xattrs-xattrHeader)/4+1))
	}
	le.PutUint16(p[4:], r.mode)
	le.PutUint64(p[8:], r.size)
	le.PutUint32(p[16:], r.u)
	le.PutUint32(p[20:], r.ino)
	le.PutUint32(p[24:], r.uid)
	le.PutUint32(p[28:], r.gid)
	le.PutUint64(p[32:], uint64(r.mtime))
	le.PutUint32(p[40:], r.mtimeNs)
	le.PutUint32(p[nlinkOffset:], r.nlink)
}

// xattrPrefixes are the attribute name spaces that the format can hold, with their indexes.
var xattrPrefixes = []struct {
	prefix string
	index  uint8
	exact  bool // the prefix is the whole name
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr returns the index of a name's prefix and the rest of the name.
func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if rest, found := strings.CutPrefix(name, p.prefix); found && (rest == "") == p.exact {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// encodeXattrs returns an inode's attribute area, nil if there is none. Names
// outside the name spaces that Linux keeps on a disk are left out, as a Linux
// file system would refuse them.
func encodeXattrs(attrs map[string]string) ([]byte, error) {
	if len(attrs) == 0 {
		return nil, nil
	}
	names := make([]string, 0, len(attrs))
	size := xattrHeader
	for name, value := range attrs {
		_, rest, ok := splitXattr(name)
		if !ok {
			continue
		}
		if len(rest) > MaxName || len(value) > MaxXattrValue {
			return nil, fmt.Errorf("extended attribute %.64q: %d bytes of value: %w", name, len(value), ErrTooLarge)
		}
		names = append(names, name)
		if size += roundUp(xattrEntry+len(rest)+len(value), 4); size > MaxXattrs {
			return nil, fmt.Errorf("extended attributes: more than %d bytes: %w", MaxXattrs, ErrTooLarge)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	sort.Strings(names)
	area := make([]byte, xattrHeader, size)
	for _, name := range names {
		index, rest, _ := splitXattr(name)
		value := attrs[name]
		area = append(area, uint8(len(rest)), index, 0, 0)
		le.PutUint16(area[len(area)-2:], uint16(len(value)))
		area = append(append(area, rest...), value...)
		area = append(area, make([]byte, roundUp(len(area), 4)-len(area))...)
	}
	return area, nil
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
