package oci

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseReference(t *testing.T) {
	dir, err := filepath.Abs(".")
	require.NoError(t, err)
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"nginx":                           "docker.io/library/nginx:latest",
		"nginx:1.27":                      "docker.io/library/nginx:1.27",
		"user/app":                        "docker.io/user/app:latest",
		"docker.io/nginx":                 "docker.io/library/nginx:latest",
		"docker://nginx":                  "docker.io/library/nginx:latest",
		"localhost/x":                     "localhost/x:latest",
		"localhost:5000/x:tag":            "localhost:5000/x:tag",
		"[::1]:5000/x":                    "[::1]:5000/x:latest",
		"quay.io/a/b/c@" + digest:         "quay.io/a/b/c@" + digest,
		"quay.io/a:tag@" + digest:         "quay.io/a@" + digest,
		"oci:.":                           "oci:" + dir,
		"oci:/none/such:v1":               "oci:/none/such:v1",
		"oci:/none/such@" + digest:        "oci:/none/such@" + digest,
		"oci-archive:/none/a.tar":         "oci-archive:/none/a.tar",
		"docker-archive:doc.go:nginx:1.2": "docker-archive:" + dir + "/doc.go:nginx:1.2",
		".":                               dir,
		"./doc.go:tag":                    dir + "/doc.go:tag",
		"/none/such":                      "/none/such",
	} {
		ref, err := parseReference(in, nil)
		require.NoError(t, err, in)
		require.Equal(t, want, ref.full, in)
	}
	for _, in := range []string{"", "Nginx", "a b", "nginx:", "nginx@sha256:123", "oci:", "oci-archive:", "oci:/x@sha256:12", "docker://", "http://x/y", "a:b:c"} {
		_, err := parseReference(in, nil)
		require.ErrorIs(t, err, ErrInvalidReference, "%q", in)
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"nginx", "host:5000/a/b:tag", "x@sha256:" + strings.Repeat("a", 64), "oci:dir:tag", "./x", "docker-archive:a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ref, err := parseReference(s, nil); err == nil {
			require.NotEmpty(t, ref.full)
		}
	})
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	insecure := []string{"registry.lan", "other.lan:5000"}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:80": true, "127.1.2.3": true, "[::1]:5000": true,
		"registry.lan": true, "registry.lan:5000": true, "other.lan:5000": true, "other.lan": false,
		"docker.io": false, "10.0.0.1:5000": false, "192.168.1.1": false, "localhost.example.org": false, "evil.localhost": false,
	} {
		require.Equal(t, want, plainHTTPAllowed(host, insecure), host)
	}
}
