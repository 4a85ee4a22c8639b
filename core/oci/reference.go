package oci

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// reference is a parsed image reference.
type reference struct {
	kind string // one of the constants below
	full string // canonical spelling, the key in the store

	registry name.Reference // for registries

	path   string // for the others: absolute path of the directory or file
	tag    string // "" if none was given
	digest string // "" if none was given
}

const (
	kindRegistry      = "docker://"
	kindLayout        = "oci:"
	kindArchive       = "oci-archive:"
	kindDockerArchive = "docker-archive:"
	kindPath          = "" // one of the three above
)

// parseReference parses all the spellings of the package's documentation. It
// looks at the file system only for those that are paths.
func parseReference(s string, insecure []string) (reference, error) {
	for _, kind := range []string{kindArchive, kindDockerArchive, kindLayout} {
		if rest, ok := strings.CutPrefix(s, kind); ok {
			return localReference(s, kind, rest)
		}
	}
	if isPath(s) {
		return localReference(s, kindPath, s)
	}
	return registryReference(s, insecure)
}

func isPath(s string) bool {
	return s == "." || s == ".." || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
}

func badReference(s string, err error, hint string) error {
	return &Error{Op: "parse reference", Ref: s, Kind: ErrInvalidReference, Err: err, Hint: hint}
}

func registryReference(s string, insecure []string) (reference, error) {
	rest := strings.TrimPrefix(s, kindRegistry)
	parsed, err := name.ParseReference(rest)
	if err != nil {
		return reference{}, badReference(s, err, "expected NAME[:TAG], HOST[:PORT]/NAME[:TAG] or NAME@sha256:…")
	}
	if plainHTTPAllowed(parsed.Context().RegistryStr(), insecure) {
		if parsed, err = name.ParseReference(rest, name.Insecure); err != nil {
			return reference{}, badReference(s, err, "")
		}
	}
	full := parsed.Name()
	if after, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		full = "docker.io/" + after
	}
	return reference{kind: kindRegistry, full: full, registry: parsed}, nil
}

// localReference parses PATH[:tag] or PATH@digest. Since both paths and tags may
// have colons, the shortest path that exists wins.
func localReference(s, kind, rest string) (reference, error) {
	r := reference{kind: kind, path: rest}
	if before, digest, ok := strings.Cut(rest, "@sha256:"); ok {
		r.path, r.digest = before, "sha256:"+digest
		if _, err := v1.NewHash(r.digest); err != nil {
			return r, badReference(s, err, "a digest is sha256: and 64 hexadecimal digits")
		}
	} else {
		r.path, r.tag = splitTag(rest)
	}
	if r.path == "" {
		return r, badReference(s, nil, "expected a path after "+kind)
	}
	abs, err := filepath.Abs(r.path)
	if err != nil {
		return r, badReference(s, err, "")
	}
	r.path = abs
	r.full = r.kind + r.path
	if r.tag != "" {
		r.full += ":" + r.tag
	}
	if r.digest != "" {
		r.full += "@" + r.digest
	}
	return r, nil
}

func splitTag(s string) (path, tag string) {
	for i := range len(s) {
		if s[i] != ':' {
			continue
		}
		if _, err := os.Stat(s[:i]); err == nil {
			return s[:i], s[i+1:]
		}
	}
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}
