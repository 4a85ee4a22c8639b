// Package snapshot keeps snapshots of virtual machines on disk: memory, disk and device state in one directory for each, in a
// store that any number of processes share. It knows nothing of images, guests or hypervisors: the machine's state and the
// configuration are the user's bytes. The format is described in docs/snapshot-format.md.
//
// A snapshot appears whole or not at all, never changes, and stays readable for whoever has loaded it, whatever becomes of it in
// the store. Everything read from a store is checked; an error says which file of which snapshot is wrong, and where.
//
// The store must be on a local file system: processes agree by flock, which the kernel drops when its holder dies.
package snapshot
