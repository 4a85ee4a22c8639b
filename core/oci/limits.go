package oci

import "cmp"

// Limits bound what a hostile image can cost. A zero field means its default.
type Limits struct {
	Bytes         int64 // all layers together, uncompressed, holes included; default 64 GiB
	FileBytes     int64 // one regular file; default 32 GiB
	Entries       int   // entries of all layers together; default 1,048,576
	Layers        int   // default 512
	Depth         int   // directories above an entry; default 256
	PathBytes     int   // name of an entry; default 4,096
	ManifestBytes int64 // an index, manifest or config; default 8 MiB
	XattrBytes    int   // extended attributes of one entry; default 64 KiB, which is also the most
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Bytes:         cmp.Or(l.Bytes, 64<<30),
		FileBytes:     cmp.Or(l.FileBytes, 32<<30),
		Entries:       cmp.Or(l.Entries, 1<<20),
		Layers:        cmp.Or(l.Layers, 512),
		Depth:         cmp.Or(l.Depth, 256),
		PathBytes:     cmp.Or(l.PathBytes, 4096),
		ManifestBytes: cmp.Or(l.ManifestBytes, 8<<20),
		XattrBytes:    cmp.Or(l.XattrBytes, 64<<10),
	}
}
