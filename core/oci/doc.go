// Package oci turns an image reference into one EROFS root filesystem in a
// local, content-addressed store.
//
//	store, err := oci.OpenStore(dir)
//	image, err := store.Pull(ctx, "docker.io/library/nginx:latest", oci.PullOptions{})
//	fmt.Println(image.RootFS, image.Config.Entrypoint)
//
// # Sources
//
//	nginx, host:5000/app:tag, name@sha256:…   a registry (docker:// in front is allowed)
//	oci:DIR[:tag], oci:DIR@sha256:…           an OCI image layout directory
//	oci-archive:FILE[:tag]                    the same in a tar file
//	docker-archive:FILE[:tag]                 what docker save writes
//	./path, ../path, /path                    a directory or file of one of these kinds
//
// Registries are spoken to by HTTPS; those on the loopback address, and those
// that [PullOptions] lists as insecure, may also use plain HTTP.
//
// # How a pull works
//
// Layers are downloaded in parallel into the store. Each one is decompressed,
// parsed and written into the EROFS image in order while later ones, and the
// rest of itself, still arrive; nothing is ever unpacked onto the host's file
// system. Every blob is checked against its digest and size, every layer against
// its diff ID. Only an image in which all is right gets its final name.
//
// Layers are applied as Docker's overlay2 driver would: a whiteout hides what
// lower layers brought, never what its own layer brings; entries below a
// symbolic link follow the link if the same layer made it, and replace it with
// a directory if a lower one did. All paths are resolved inside the image.
// Hard links keep being links to one inode, also across layers.
//
// # The store
//
//	blobs/sha256/   compressed layers of unfinished pulls, whole or partial
//	rootfs/         EROFS images, named by the digest of the list of their layers' diff IDs
//	images/         one JSON record per manifest
//	refs/           one JSON record per reference and platform
//	locks/, tmp/    empty when nobody uses the store
//
// Files appear by rename after fsync, so a crash leaves the old state or the
// new. What a killed pull leaves in tmp is removed by the next one; blobs stay
// for a day, so that the same pull can be resumed. Any number of processes may
// share a store: they wait for each other only to avoid doing the same work.
package oci
