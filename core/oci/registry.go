package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry is a repository of a registry (OCI distribution spec).
type registry struct {
	ref     name.Reference
	client  *http.Client
	scheme  string
	network network
	conns   interface{ CloseIdleConnections() } // nil if the transport is the caller's
}

// network is how patiently a registry is spoken to.
type network struct {
	transport  http.RoundTripper // the caller's, may be nil
	insecure   []string
	idle       time.Duration // longest wait for the next bytes
	retryDelay time.Duration // before the first retry; doubles each time
	keychain   authn.Keychain
}

const (
	maxAttempts   = 4
	maxRedirects  = 10
	maxRetryAfter = 30 * time.Second
)

// acceptedManifests are sent with requests for manifests.
var acceptedManifests = []string{
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}

// plainHTTPAllowed says whether a registry may be spoken to without TLS: as
// Docker does, if it is on the loopback address or listed.
func plainHTTPAllowed(host string, insecure []string) bool {
	if slices.Contains(insecure, host) {
		return true
	}
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	bare = strings.Trim(bare, "[]")
	if bare == "localhost" || slices.Contains(insecure, bare) {
		return true
	}
	addr, err := netip.ParseAddr(bare)
	return err == nil && addr.IsLoopback()
}

// openRegistry logs in to the reference's registry.
func openRegistry(ctx context.Context, ref name.Reference, n network) (*registry, error) {
	host := ref.Context().RegistryStr()
	plain := plainHTTPAllowed(host, n.insecure)
	r := &registry{ref: ref, network: n}
	base := n.transport
	if base == nil {
		t := newTransport(n.idle, plain)
		base, r.conns = t, t
	}
	auth, err := authn.Resolve(ctx, n.keychain, ref.Context())
	if err != nil {
		return nil, &Error{Kind: ErrUnauthorized, Err: errors.New("the credentials configured for " + host + " cannot be read"), Hint: "check the Docker config"}
	}
	guarded := &guard{inner: base, plain: plain}
	var rt http.RoundTripper
	err = retry(ctx, n, func() error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer watchIdle(n.idle, cancel).stop()
		rt, err = transport.NewWithContext(ctx, ref.Context().Registry, auth, guarded, []string{ref.Scope(transport.PullScope)})
		return registryError(ctx, err, host)
	})
	if err != nil {
		r.close()
		return nil, err
	}
	// The login found out whether HTTPS works and puts that scheme into every request to the registry.
	r.scheme = ref.Context().Scheme()
	r.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	return r, nil
}

// newTransport returns a transport of our own. Hosts that may do without TLS may also have any certificate.
func newTransport(idle time.Duration, plain bool) *http.Transport {
	dialer := net.Dialer{Timeout: idle, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext,
		TLSHandshakeTimeout: idle, ResponseHeaderTimeout: idle, IdleConnTimeout: 90 * time.Second,
		MaxIdleConnsPerHost: 8, ForceAttemptHTTP2: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: plain, MinVersion: tls.VersionTLS12},
	}
}

// guard keeps requests to registries that must use TLS from ever going without it.
type guard struct {
	inner http.RoundTripper
	plain bool
}

var errPlainHTTP = errors.New("plain HTTP is not allowed for this registry")

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain {
		return nil, errPlainHTTP
	}
	return g.inner.RoundTrip(req)
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errPlainHTTP
	}
	return nil
}

func (r *registry) remote() bool { return true }
func (r *registry) hashed() bool { return true }

func (r *registry) close() error {
	if r.conns != nil {
		r.conns.CloseIdleConnections()
	}
	return nil
}

func (r *registry) root(ctx context.Context, limit int64) ([]byte, types.MediaType, error) {
	raw, header, err := r.getManifest(ctx, r.ref.Identifier(), limit)
	if err != nil {
		return nil, "", err
	}
	want := header.Get("Docker-Content-Digest")
	if d, ok := r.ref.(name.Digest); ok {
		want = d.DigestStr()
	}
	if h, err := v1.NewHash(want); err == nil && h.Algorithm == "sha256" {
		if err := checkBytes(raw, v1.Descriptor{Digest: h}); err != nil {
			return nil, "", err
		}
	}
	mediaType, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	return raw, types.MediaType(strings.TrimSpace(mediaType)), nil
}

func (r *registry) manifest(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	raw, _, err := r.getManifest(ctx, d.Digest.String(), limit)
	return raw, err
}

func (r *registry) getManifest(ctx context.Context, id string, limit int64) (raw []byte, header http.Header, err error) {
	err = retry(ctx, r.network, func() error {
		resp, err := r.get(ctx, "manifests/"+id, map[string]string{"Accept": strings.Join(acceptedManifests, ", ")})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		header = resp.Header
		raw, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err != nil {
			return registryError(ctx, err, r.host())
		}
		if int64(len(raw)) > limit {
			return overLimit("", "manifest of more than %d bytes", limit)
		}
		return nil
	})
	return raw, header, err
}

func (r *registry) blob(ctx context.Context, d v1.Descriptor, offset int64) (body io.ReadCloser, start int64, err error) {
	header := map[string]string{}
	if offset > 0 {
		header["Range"] = "bytes=" + strconv.FormatInt(offset, 10) + "-"
	}
	err = retry(ctx, r.network, func() error {
		resp, err := r.get(ctx, "blobs/"+d.Digest.String(), header)
		if err != nil {
			return withContext(err, "", "", d.Digest.String())
		}
		body = resp.Body
		if resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			start = offset
		}
		return nil
	})
	return body, start, err
}

func (r *registry) host() string { return r.ref.Context().RegistryStr() }

// get sends one request. The body's reads fail when no byte comes for the idle time.
func (r *registry) get(ctx context.Context, path string, header map[string]string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := watchIdle(r.network.idle, cancel)
	url := fmt.Sprintf("%s://%s/v2/%s/%s", r.scheme, r.host(), r.ref.Context().RepositoryStr(), path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		watch.stop()
		return nil, &Error{Kind: ErrInvalidReference, Err: err}
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := r.client.Do(req)
	if err == nil {
		err = transport.CheckError(resp, http.StatusOK, http.StatusPartialContent)
		if err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		err = registryError(ctx, err, r.host())
		var e *Error
		if resp != nil && errors.As(err, &e) {
			seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			e.retryAfter = time.Duration(seconds) * time.Second
		}
		watch.stop()
		return nil, err
	}
	resp.Body = &idleBody{ReadCloser: resp.Body, ctx: ctx, watch: watch, host: r.host()}
	return resp, nil
}

var errIdle = errors.New("no data")

// idleWatch cancels a request whose peer falls silent.
type idleWatch struct {
	timer  *time.Timer
	idle   time.Duration
	cancel context.CancelCauseFunc
}

func watchIdle(idle time.Duration, cancel context.CancelCauseFunc) *idleWatch {
	timer := time.AfterFunc(idle, func() { cancel(fmt.Errorf("%w for %v", errIdle, idle)) })
	return &idleWatch{timer: timer, idle: idle, cancel: cancel}
}

func (w *idleWatch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// idleBody restarts the watch with every read and makes the errors ours.
type idleBody struct {
	io.ReadCloser
	ctx   context.Context
	watch *idleWatch
	host  string
}

func (b *idleBody) Read(p []byte) (int, error) {
	b.watch.timer.Reset(b.watch.idle)
	n, err := b.ReadCloser.Read(p)
	b.watch.timer.Stop()
	if err != nil && err != io.EOF {
		err = registryError(b.ctx, err, b.host)
	}
	return n, err
}

func (b *idleBody) Close() error {
	b.watch.stop()
	return b.ReadCloser.Close()
}
