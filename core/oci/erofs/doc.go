// Package erofs writes uncompressed EROFS file system images in one pass.
//
// A [Writer] streams file contents straight to their final place in the image
// file while the caller keeps the directory tree in memory; [Writer.Finish]
// writes the directories and the superblock. The result is what Linux 5.15 and
// later mounts: 4 KiB blocks, extended inodes, tails of files packed next to
// their inodes, and chunk-based files where a file has holes.
//
// # Why not a library
//
// github.com/erofs/go-erofs reads such images (the tests use it for that), but
// its writer gives every name its own inode, so hard links would have to be
// patched into the finished image; it also spools all contents to a second file
// first, and keeps what an upper layer deleted. The part of the format needed
// here is three structures, so writing it directly is smaller than working
// around that: an inode is a value that any number of directory entries may
// point at, contents are written once, and the blocks of a file that an upper
// layer replaces are given back with [Writer.Discard].
//
// # Layout of an image
//
// Block 0 holds the superblock (offset 1024) and the root directory's inode.
// After it, runs of data blocks alternate with 64 KiB segments of metadata
// (inodes with their extended attributes, chunk maps and tails); directories
// come last. Because meta_blkaddr is 0, an inode's number is simply its offset
// divided by 32, wherever it lies.
//
// The same input gives the same bytes: no clock, host name or random UUID
// enters the image.
//
// On-disk structures follow fs/erofs/erofs_fs.h of Linux 6.12.
package erofs
