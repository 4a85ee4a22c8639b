package oci_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
	. "github.com/supermachine/supermachine/core/oci/ocitest"
)

// handler makes a wrapper for NewRegistry that may answer a request itself.
func handler(f func(w http.ResponseWriter, r *http.Request) (done bool)) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !f(w, r) {
				h.ServeHTTP(w, r)
			}
		})
	}
}

func isGet(r *http.Request, part string) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, part)
}

func TestRegistryFailures(t *testing.T) {
	ctx := context.Background()
	answer := func(part string, status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !isGet(r, part) {
				return false
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
			return true
		}
	}
	hang := func(part string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !isGet(r, part) {
				return false
			}
			<-r.Context().Done()
			return true
		}
	}
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		kind   error
		text   string
	}{
		"no such tag":          {answer("/manifests/", 404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"secret"}]}`), oci.ErrNotFound, "404 Not Found (MANIFEST_UNKNOWN)"},
		"no such blob":         {answer("/blobs/", 404, ""), oci.ErrNotFound, "404"},
		"unauthorized":         {answer("/manifests/", 401, `{"errors":[{"code":"UNAUTHORIZED"}]}`), oci.ErrUnauthorized, "docker login"},
		"forbidden":            {answer("/manifests/", 403, "secret"), oci.ErrUnauthorized, "docker login"},
		"rate limit":           {answer("/manifests/", 429, ""), oci.ErrRateLimited, "try again later"},
		"failing":              {answer("/manifests/", 503, "secret"), oci.ErrUnreachable, "503"},
		"failing blobs":        {answer("/blobs/", 500, ""), oci.ErrUnreachable, "500"},
		"failing at login":     {answer("/v2/", 502, ""), oci.ErrUnreachable, "502"},
		"not a registry":       {answer("/v2/", 418, "secret"), oci.ErrUnreachable, "is this a container registry?"},
		"not a registry again": {answer("/v2/", 200, "<html>secret"), oci.ErrInvalidImage, "manifest"},
		"slow login":           {hang("/v2/"), oci.ErrUnreachable, "too slow"},
		"slow manifest":        {hang("/manifests/"), oci.ErrUnreachable, "too slow"},
		"slow blob":            {hang("/blobs/"), oci.ErrUnreachable, "too slow"},
		"silent blob": {func(w http.ResponseWriter, r *http.Request) bool {
			if !isGet(r, "/blobs/") {
				return false
			}
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, oci.ErrUnreachable, "no data for"},
		"token service with a private address": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://169.254.169.254/secret"`)
			w.WriteHeader(401)
			return true
		}, oci.ErrUnreachable, "unexpected answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var on atomic.Bool
			host := NewRegistry(t, handler(func(w http.ResponseWriter, r *http.Request) bool { return on.Load() && tt.answer(w, r) }))
			require.NoError(t, sample().Push(ctx, host, "app", "v1"))
			on.Store(true)
			s := newStore(t)
			_, err := s.Pull(ctx, host+"/app:v1", oci.PullOptions{RetryDelay: time.Millisecond, IdleTimeout: 200 * time.Millisecond})
			require.ErrorIs(t, err, tt.kind)
			require.ErrorContains(t, err, tt.text)
			require.ErrorContains(t, err, host)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestRegistryIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	_, err = newStore(t).Pull(context.Background(), l.Addr().String()+"/app", fast)
	require.ErrorIs(t, err, oci.ErrUnreachable)
	require.ErrorContains(t, err, "connection refused")
	require.ErrorContains(t, err, "is the registry running")
}

func TestNoSuchHost(t *testing.T) {
	_, err := newStore(t).Pull(context.Background(), "registry.invalid/app", fast)
	require.ErrorIs(t, err, oci.ErrUnreachable)
	require.ErrorContains(t, err, "registry.invalid: ")
}

func TestCancelledPull(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	host := NewRegistry(t, handler(func(w http.ResponseWriter, r *http.Request) bool {
		if isGet(r, "/blobs/") {
			cancel()
			<-r.Context().Done()
		}
		return false
	}))
	require.NoError(t, sample().Push(context.Background(), host, "app", "v1"))
	_, err := newStore(t).Pull(ctx, host+"/app:v1", fast)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "app:v1")
}

func TestTransientFailuresAreRetried(t *testing.T) {
	ctx := context.Background()
	var failures atomic.Int32
	host := NewRegistry(t, handler(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && failures.Add(1)%2 == 1 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader([]int{429, 500, 503}[failures.Load()%3])
			return true
		}
		return false
	}))
	require.NoError(t, sample().Push(ctx, host, "app", "v1"))
	_, err := newStore(t).Pull(ctx, host+"/app:v1", fast)
	require.NoError(t, err)
}

// noise is a layer that does not compress.
func noise(n int) Layer {
	content := make([]byte, n)
	rand.New(rand.NewSource(1)).Read(content)
	return Gzip(File("noise", string(content)))
}

func TestDamagedLayers(t *testing.T) {
	ctx := context.Background()
	texts := map[string]string{
		"truncated": "the blob ends after", "empty": "the blob ends after 0 of", "too long": "the blob is longer than",
		"changed": "the blob's digest is", "another": "the blob's digest is", "wrong diff ID": "diff ID",
	}
	for name, damage := range map[string]func(l *Layer){
		"truncated": func(l *Layer) { l.Blob = l.Blob[:len(l.Blob)/2] },
		"empty":     func(l *Layer) { l.Blob = nil },
		"too long":  func(l *Layer) { l.Blob = append(bytes.Clone(l.Blob), "more"...) },
		"changed": func(l *Layer) {
			l.Blob = bytes.Clone(l.Blob)
			l.Blob[len(l.Blob)/2] ^= 1
		},
		"another": func(l *Layer) { l.Blob = Gzip(File("other", "")).Blob; l.Size = int64(len(l.Blob)) },
		"wrong diff ID": func(l *Layer) {
			l.DiffID = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			layer := noise(1 << 20)
			damage(&layer)
			image := NewImage(v1.Config{}, Gzip(File("good", "")), layer)

			// The registry would not take such blobs, so they are put in on the way out.
			host := NewRegistry(t, handler(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Method != http.MethodGet:
					return false
				case strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", string(image.MediaType))
					w.Write(image.Manifest)
					return true
				case strings.Contains(r.URL.Path, "/blobs/"):
					h, _ := v1.NewHash(filepath.Base(r.URL.Path))
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(image.Blobs[h]))
					return true
				}
				return false
			}))
			dir := t.TempDir()
			require.NoError(t, WriteLayout(dir, map[string]*Image{"v1": image}))
			for _, ref := range []string{host + "/app:v1", dir} {
				s := newStore(t)
				_, err := s.Pull(ctx, ref, fast)
				require.ErrorIs(t, err, oci.ErrDigestMismatch)
				require.ErrorContains(t, err, layer.Digest.String())
				require.ErrorContains(t, err, texts[name])
				requireEmptyStore(t, s)
			}
		})
	}
}

func TestWrongManifestDigest(t *testing.T) {
	ctx := context.Background()
	var on atomic.Bool
	host := NewRegistry(t, handler(func(w http.ResponseWriter, r *http.Request) bool {
		if !on.Load() || !isGet(r, "/manifests/") {
			return false
		}
		w.Write(NewImage(v1.Config{}).Manifest)
		return true
	}))
	image := sample()
	require.NoError(t, image.Push(ctx, host, "app", "v1"))
	on.Store(true)
	_, err := newStore(t).Pull(ctx, host+"/app@"+image.Digest().String(), fast)
	require.ErrorIs(t, err, oci.ErrDigestMismatch)
}

// cutter serves blobs of more than a kilobyte in pieces: each answer breaks off
// after some bytes. It keeps the Range headers it got.
type cutter struct {
	piece  int64
	ranges chan string
	broken func() // called before an answer breaks off
	ignore bool   // ignores Range
}

func (c *cutter) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isGet(r, "/blobs/") {
			h.ServeHTTP(w, r)
			return
		}
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, plain)
		body := rec.Body.Bytes()
		if len(body) < 1000 {
			w.Write(body)
			return
		}
		c.ranges <- r.Header.Get("Range")
		start := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start); err == nil && !c.ignore {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
			w.Header().Set("Content-Length", strconv.Itoa(len(body)-start))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			start = 0
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			c.piece += 100 << 10 // else it would never end
		}
		end := min(start+int(c.piece), len(body))
		w.Write(body[start:end])
		if end < len(body) {
			w.(http.Flusher).Flush()
			if c.broken != nil {
				c.broken()
			}
			panic(http.ErrAbortHandler)
		}
	})
}

func TestBrokenConnectionsAreResumed(t *testing.T) {
	ctx := context.Background()
	for _, ignore := range []bool{false, true} {
		c := &cutter{piece: 300 << 10, ranges: make(chan string, 100), ignore: ignore}
		host := NewRegistry(t, c.wrap)
		require.NoError(t, NewImage(v1.Config{}, noise(1<<20)).Push(ctx, host, "app", "v1"))
		image, err := newStore(t).Pull(ctx, host+"/app:v1", fast)
		require.NoError(t, err)
		require.Contains(t, tree(t, openImage(t, image)), "noise")
		require.GreaterOrEqual(t, len(c.ranges), 3)
		require.Empty(t, <-c.ranges)
		require.True(t, strings.HasPrefix(<-c.ranges, "bytes="))
	}
}

func TestAnInterruptedPullGoesOn(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := newStore(t)
	layer := noise(1 << 20)
	part := filepath.Join(s.Dir(), "blobs", "sha256", layer.Digest.Hex+".part")
	c := &cutter{piece: 500 << 10, ranges: make(chan string, 100), broken: func() {
		require.Eventually(t, func() bool {
			info, err := os.Stat(part)
			return err == nil && info.Size() > 0
		}, 10*time.Second, time.Millisecond)
		cancel()
	}}
	host := NewRegistry(t, c.wrap)
	require.NoError(t, NewImage(v1.Config{}, layer).Push(ctx, host, "app", "v1"))
	_, err := s.Pull(ctx, host+"/app:v1", oci.PullOptions{})
	require.ErrorIs(t, err, context.Canceled)
	require.FileExists(t, part)

	c.broken = nil
	for len(c.ranges) > 0 {
		<-c.ranges
	}
	image, err := s.Pull(context.Background(), host+"/app:v1", fast)
	require.NoError(t, err)
	require.Contains(t, tree(t, openImage(t, image)), "noise")
	require.True(t, strings.HasPrefix(<-c.ranges, "bytes="), "the second pull begins where the first ended")
	require.NoFileExists(t, part)

	// A beginning that is wrong is found out and fetched anew.
	require.NoError(t, s.Remove(context.Background(), host+"/app:v1", ""))
	require.NoError(t, os.WriteFile(part, []byte("not the beginning of it"), 0o600))
	_, err = s.Pull(context.Background(), host+"/app:v1", fast)
	require.NoError(t, err)
}

func TestRegistryWithTLS(t *testing.T) {
	ctx := context.Background()
	plain := NewRegistry(t, nil)
	require.NoError(t, sample().Push(ctx, plain, "app", "v1"))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host, r.RequestURI = "http", plain, ""
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	// A name that is neither loopback nor listed, with every connection going to the server.
	const host = "registry.example.org"
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
	_, err := newStore(t).Pull(ctx, host+"/app:v1", oci.PullOptions{RetryDelay: time.Millisecond, Transport: &http.Transport{DialContext: dial}})
	require.ErrorIs(t, err, oci.ErrUnreachable)
	require.ErrorContains(t, err, "its certificate is not trusted")

	trusting := server.Client().Transport.(*http.Transport).Clone()
	trusting.DialContext = dial
	trusting.TLSClientConfig.ServerName = "example.com"
	_, err = newStore(t).Pull(ctx, host+"/app:v1", oci.PullOptions{Transport: trusting})
	require.NoError(t, err)

	// On the loopback address any certificate will do.
	_, err = newStore(t).Pull(ctx, server.Listener.Addr().String()+"/app:v1", fast)
	require.NoError(t, err)

	// A registry that should use TLS and does not gets no request.
	toPlain := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, plain)
	}}
	_, err = newStore(t).Pull(ctx, "10.1.2.3:5000/app:v1", oci.PullOptions{Transport: toPlain, RetryDelay: time.Millisecond})
	require.ErrorIs(t, err, oci.ErrUnreachable)
	require.ErrorContains(t, err, "does not speak HTTPS")
	_, err = newStore(t).Pull(ctx, "10.1.2.3:5000/app:v1", oci.PullOptions{Transport: toPlain, Insecure: []string{"10.1.2.3:5000"}})
	require.NoError(t, err)
}

func TestCredentials(t *testing.T) {
	ctx := context.Background()
	const password = "pa55word"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+password))
	var bearer atomic.Bool
	var on atomic.Bool
	wrap := handler(func(w http.ResponseWriter, r *http.Request) bool {
		auth := r.Header.Get("Authorization")
		switch {
		case !on.Load():
			return false
		case r.URL.Path == "/token" && auth == basic:
			io.WriteString(w, `{"token":"t0ken"}`)
			return true
		case r.URL.Path != "/token" && auth == map[bool]string{false: basic, true: "Bearer t0ken"}[bearer.Load()]:
			return false
		case bearer.Load() && r.URL.Path != "/token":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token?secret=%s",service="x"`, r.Host, password))
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"you sent %s %s"}]}`, auth, password)
		return true
	})
	host := NewRegistry(t, wrap)
	require.NoError(t, sample().Push(ctx, host, "app", "v1"))
	on.Store(true)

	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	login := func(secret string) {
		text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("user:"+secret)))
		require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), []byte(text), 0o600))
	}
	for _, b := range []bool{false, true} {
		bearer.Store(b)
		login(password)
		_, err := newStore(t).Pull(ctx, host+"/app:v1", fast)
		require.NoError(t, err)

		login("wr0ng")
		_, err = newStore(t).Pull(ctx, host+"/app:v1", fast)
		require.ErrorIs(t, err, oci.ErrUnauthorized)
		require.ErrorContains(t, err, "docker login "+host)
		for _, secret := range []string{password, "wr0ng", "t0ken", base64.StdEncoding.EncodeToString([]byte("user:wr0ng"))} {
			require.NotContains(t, fmt.Sprintf("%v %+v", err, err), secret)
		}
		opts := fast
		opts.Keychain = keychain{authn.FromConfig(authn.AuthConfig{Username: "user", Password: password})}
		_, err = newStore(t).Pull(ctx, host+"/app:v1", opts)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths": `+password), 0o600))
	_, err := newStore(t).Pull(ctx, host+"/app:v1", fast)
	require.ErrorIs(t, err, oci.ErrUnauthorized)
	require.NotContains(t, err.Error(), password)
}

type keychain struct{ authn.Authenticator }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.Authenticator, nil }
