package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Policy says when Pull asks the source of an image.
type Policy int

// The policies, as docker names them. An image in a local directory or file is
// looked at each time unless the policy is PullNever: that costs next to nothing.
const (
	PullMissing Policy = iota // only if the store does not have the reference
	PullAlways                // always; layers are fetched only if the image changed
	PullNever                 // not at all: fail with ErrNotPulled
)

// ParsePolicy parses "missing", "always" and "never"; empty means missing.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "", "missing":
		return PullMissing, nil
	case "always":
		return PullAlways, nil
	case "never":
		return PullNever, nil
	}
	return 0, fmt.Errorf("unknown pull policy %q: expected missing, always or never", s)
}

// PullOptions change how Pull works; the zero value is right for most.
type PullOptions struct {
	Policy   Policy
	Platform string      // "os/arch[/variant]"; empty: linux on the host's architecture
	Progress func(Event) // called from several goroutines, one at a time; must be quick; may be nil
	Limits   Limits

	Insecure    []string          // registries ("host" or "host:port") that may use plain HTTP or any certificate
	Keychain    authn.Keychain    // nil: the Docker config, in DOCKER_CONFIG or ~/.docker
	Transport   http.RoundTripper // nil: one of our own, with the proxies of the environment
	IdleTimeout time.Duration     // a registry that sends nothing for so long is given up; default 30 s
	RetryDelay  time.Duration     // before a failed request is tried again, doubled each time; default 500 ms
}

// Pull returns an image, after getting it into the store if the policy asks for
// that. It blocks until then or until ctx ends; a pull that was interrupted
// goes on where it stopped when it is tried again. Two pulls of one image at
// once, also by two processes, share the work.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	image, err := s.pull(ctx, ref, opts)
	return image, withContext(err, "pull", ref, "")
}

func (s *Store) pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	want, err := parsePlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	parsed, err := parseReference(ref, opts.Insecure)
	if err != nil {
		return nil, err
	}
	if opts.Policy == PullNever || opts.Policy == PullMissing && parsed.kind == kindRegistry {
		// A record that cannot be read is replaced by pulling anew.
		image, err := s.Get(ref, opts.Platform)
		if opts.Policy == PullNever || err == nil {
			return image, err
		}
	}
	held, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer held.unlock()
	p := &puller{
		store: s, ref: parsed, want: want, limits: opts.Limits.withDefaults(),
		progress: newProgress(opts.Progress),
		network: network{
			transport: opts.Transport, insecure: opts.Insecure, keychain: opts.Keychain,
			idle: cmp.Or(opts.IdleTimeout, 30*time.Second), retryDelay: cmp.Or(opts.RetryDelay, 500*time.Millisecond),
		},
	}
	if p.network.keychain == nil {
		p.network.keychain = authn.DefaultKeychain
	}
	return p.pull(ctx)
}

// puller is one pull.
type puller struct {
	store    *Store
	ref      reference
	want     v1.Platform
	limits   Limits
	network  network
	progress *progress
	src      source
	image    *resolved
}

func (p *puller) pull(ctx context.Context) (*Image, error) {
	var err error
	if p.ref.kind == kindRegistry {
		p.src, err = openRegistry(ctx, p.ref.registry, p.network)
	} else {
		p.src, err = openLocal(p.ref, p.store.temp, p.limits)
	}
	if err != nil {
		return nil, err
	}
	defer p.src.close()
	if p.image, err = resolve(ctx, p.src, p.want, p.limits); err != nil {
		return nil, err
	}
	p.progress.start(p.image)
	key := rootfsKey(p.image.layers)
	image, err := p.commit(ctx, key, nil)
	if errors.Is(err, fs.ErrNotExist) {
		image, err = p.make(ctx, key)
	}
	if p.src.remote() && (err == nil || !resumable(err)) {
		p.store.dropBlobs(p.image.layers)
	}
	if err == nil {
		p.progress.end()
	}
	return image, err
}

// make converts the layers, unless another process has done so while this one waited for its turn.
func (p *puller) make(ctx context.Context, key string) (*Image, error) {
	l, err := lock(ctx, p.store.path("locks", "rootfs-"+key), false, false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	if image, err := p.commit(ctx, key, nil); !errors.Is(err, fs.ErrNotExist) {
		return image, err
	}
	f, err := p.store.temp()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var image *Image
	if err = p.convert(ctx, f, key); err == nil {
		image, err = p.commit(ctx, key, f)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return image, err
}

// commit records the image and its reference. Its root filesystem is f, or if
// that is nil must be there already, else the error is fs.ErrNotExist.
func (p *puller) commit(ctx context.Context, key string, f *os.File) (*Image, error) {
	l, err := p.store.lockRecords(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	path := p.store.rootfsPath(key)
	if f != nil {
		if err := f.Chmod(0o444); err != nil {
			return nil, err
		}
		if err := install(f, path); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	image := &Image{
		Ref: p.ref.full, Digest: p.image.digest, ConfigDigest: p.image.configDigest,
		Platform: platformString(p.image.platform), Config: makeConfig(p.image.config.Config),
		RootFS: path, Size: info.Size(), Created: p.image.config.Created.UTC(), RootFSKey: key,
	}
	if err := p.store.writeJSON(p.store.imagePath(image.Digest), image); err != nil {
		return nil, err
	}
	platform := platformString(p.want)
	return image, p.store.writeJSON(p.store.refPath(p.ref.full, platform), refRecord{Ref: p.ref.full, Platform: platform, Digest: image.Digest})
}

func makeConfig(c v1.Config) Config {
	return Config{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir,
		ExposedPorts: sortedKeys(c.ExposedPorts), Volumes: sortedKeys(c.Volumes), StopSignal: c.StopSignal, Labels: c.Labels,
	}
}

func sortedKeys(m map[string]struct{}) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// rootfsKey names what a list of layers becomes. The version goes up whenever
// the same layers begin to give another file.
func rootfsKey(layers []layer) string {
	parts := []string{"rootfs", "1"}
	for _, l := range layers {
		parts = append(parts, l.diffID)
	}
	return hexDigest(parts...)
}

func hexDigest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:])
}
