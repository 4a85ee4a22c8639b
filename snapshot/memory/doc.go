// Package memory keeps a guest's RAM as an immutable image made of file layers, and maps it copy-on-write into any number of VMs.
//
// An image is addressed by image offsets: region 0 of the RAM begins at 0, region 1 right behind it, and so on. Each layer is a
// sparse file that holds its bytes at their own image offsets, so it can be mapped as it is. A clone costs a few dozen mmap calls;
// its pages are the host's page cache until it writes to them.
//
// Two rules keep the process alive and the clones right:
//
//   - The files of layers must never be truncated or written while an image uses them, and neither while memory that Map filled
//     exists: a mapping keeps the file's content alive, not its size, and a guest's access behind the end raises SIGBUS. Replace
//     files by making new ones, and delete them by unlinking, which mappings do not notice. The package opens nothing for writing, and
//     seals the files that it makes in memory itself.
//   - A layer's file holds zeros outside its extents, as WriteLayer leaves it: mappings run over small gaps between extents.
//
// Regions passed as memory are whole mappings whose addresses stay valid during the call. No function keeps them.
package memory
