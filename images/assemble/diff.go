package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// whiteout marks a removed file in a layer (OCI image layer, "Whiteouts").
const whiteout = ".wh."

// entry is what of one file counts when two stages are compared.
type entry struct {
	digest [sha256.Size]byte
	// link is the path of the file this one is a hard link to, or empty.
	link string
}

// tree holds a stage's files by path, relative to the root and clean.
type tree map[string]entry

// walk calls visit for every file of the archive that is not excluded, with its clean path set as its name.
func walk(archive string, exclude []string, visit func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		}
		if h.Name == "" || excluded(h.Name, exclude) {
			continue
		}
		if err := visit(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// excluded reports whether a pattern (path.Match) matches the path or a directory above it.
func excluded(name string, patterns []string) bool {
	for ; name != "."; name = path.Dir(name) {
		for _, p := range patterns {
			if ok, _ := path.Match(p, name); ok {
				return true
			}
		}
	}
	return false
}

func readTree(archive string, exclude []string) (tree, error) {
	t := tree{}
	err := walk(archive, exclude, func(h *tar.Header, r io.Reader) error {
		sum := sha256.New()
		fmt.Fprintf(sum, "%c %o %d %d %q %d %d\n", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Devmajor, h.Devminor)
		for _, k := range sortedXattrs(h) {
			fmt.Fprintf(sum, "%q %q\n", k, h.PAXRecords[k])
		}
		// A directory's time changes with every file in it; it says nothing by itself.
		if h.Typeflag != tar.TypeDir {
			fmt.Fprintln(sum, h.ModTime.Unix())
		}
		if _, err := io.Copy(sum, r); err != nil {
			return err
		}
		e := entry{digest: [sha256.Size]byte(sum.Sum(nil))}
		if h.Typeflag == tar.TypeLink {
			e.link = h.Linkname
		}
		t[h.Name] = e
		return nil
	})
	return t, err
}

func sortedXattrs(h *tar.Header) []string {
	var keys []string
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// writeLayer writes to file a layer that leads from the files of before to those of the archive, and returns the latter.
func writeLayer(file, archive string, before tree, exclude []string) (tree, error) {
	after, err := readTree(archive, exclude)
	if err != nil {
		return nil, err
	}
	changed := map[string]bool{}
	for name, e := range after {
		if old, ok := before[name]; ok && old == e {
			continue
		}
		changed[name] = true
		// A hard link cannot reach into a layer below, so its other end comes along.
		if e.link != "" {
			changed[e.link] = true
		}
	}

	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	for _, name := range removed(before, after) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name))}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	err = walk(archive, exclude, func(h *tar.Header, r io.Reader) error {
		if !changed[h.Name] {
			return nil
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(w, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return after, out.Close()
}

// removed lists the paths of before that after lacks, in order, without those below another of them.
func removed(before, after tree) []string {
	var gone []string
	for name := range before {
		if _, ok := after[name]; ok {
			continue
		}
		if _, ok := before[path.Dir(name)]; ok {
			if _, ok := after[path.Dir(name)]; !ok {
				continue
			}
		}
		gone = append(gone, name)
	}
	slices.Sort(gone)
	return gone
}
