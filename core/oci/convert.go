package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/supermachine/supermachine/core/oci/erofs"
)

// maxDownloads is how many blobs are downloaded at once.
const maxDownloads = 3

// convert writes the image's layers as one EROFS image into an empty file,
// fetching those that are remote meanwhile.
func (p *puller) convert(ctx context.Context, f *os.File, key string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fetches, wait := p.startFetches(ctx, cancel)
	err := p.apply(ctx, f, key, fetches)
	if err != nil {
		cancel()
	}
	// A failed download cancels the conversion; the reason is the download's error then.
	if failed := wait(); failed != nil && (err == nil || isContextError(err)) {
		err = failed
	}
	for _, fetch := range fetches {
		fetch.close()
	}
	return err
}

// startFetches begins to download the layers in order. The first download to fail
// cancels the others; wait returns its error once all have ended. Local sources have none.
func (p *puller) startFetches(ctx context.Context, cancel func()) (fetches map[string]*fetch, wait func() error) {
	fetches = map[string]*fetch{}
	if !p.src.remote() {
		return fetches, func() error { return nil }
	}
	var queue []*fetch
	for i, l := range p.image.layers {
		if fetches[l.Digest.Hex] == nil {
			note := p.progress.layer(EventFetch, i)
			f := newFetch(p.store, p.src, l.Descriptor, p.network.retryDelay, note)
			fetches[l.Digest.Hex] = f
			queue = append(queue, f)
		}
	}
	next := make(chan *fetch, len(queue))
	for _, f := range queue {
		next <- f
	}
	close(next)
	// Not errgroup.WithContext: its context's cause is the first error, which the others would take for their own.
	var (
		workers sync.WaitGroup
		once    sync.Once
		failed  error
	)
	for range maxDownloads {
		workers.Go(func() {
			for f := range next {
				if err := f.run(ctx); err != nil {
					once.Do(func() { failed = err; cancel() })
					return
				}
			}
		})
	}
	return fetches, func() error { workers.Wait(); return failed }
}

func (p *puller) apply(ctx context.Context, f *os.File, key string, fetches map[string]*fetch) error {
	var uuid [16]byte
	hex.Decode(uuid[:], []byte(key[:32]))
	w := erofs.NewWriter(f, uuid)
	a := &applier{tree: newTree(w, p.limits)}
	budget := p.limits.Bytes
	for i, l := range p.image.layers {
		src, err := p.openLayer(ctx, l, fetches)
		if err != nil {
			return err
		}
		n, err := applyLayer(ctx, a, src, l.diffID, budget, p.progress.layer(EventConvert, i))
		src.Close()
		if err != nil {
			err = p.explain(ctx, err, l, fetches)
			return withContext(err, "apply layer", "", l.Digest.String())
		}
		budget -= n
	}
	if err := w.Finish(a.root); err != nil {
		return storeError(err)
	}
	return nil
}

// openLayer returns a layer's blob, checked against its descriptor while it is read.
func (p *puller) openLayer(ctx context.Context, l layer, fetches map[string]*fetch) (io.ReadCloser, error) {
	if f := fetches[l.Digest.Hex]; f != nil {
		return io.NopCloser(f.reader(ctx)), nil
	}
	blob, _, err := p.src.blob(ctx, l.Descriptor, 0)
	if err != nil || !p.src.hashed() {
		return blob, err
	}
	check := &checkReader{r: blob, desc: l.Descriptor}
	// The digest of an uncompressed layer is its diff ID, which is checked anyway.
	if l.Digest.String() != l.diffID {
		check.sum = sha256.New()
	}
	return struct {
		io.Reader
		io.Closer
	}{check, blob}, nil
}

// explain returns the better reason why a layer could not be applied: if its
// bytes are not what its digest says, that is why they made no sense.
func (p *puller) explain(ctx context.Context, err error, l layer, fetches map[string]*fetch) error {
	if !errors.Is(err, ErrInvalidImage) || !p.src.hashed() {
		return err
	}
	var damaged error
	if f := fetches[l.Digest.Hex]; f != nil {
		damaged = f.wait(ctx)
	} else if blob, _, openErr := p.src.blob(ctx, l.Descriptor, 0); openErr == nil {
		defer blob.Close()
		_, damaged = io.Copy(io.Discard, &checkReader{r: blob, desc: l.Descriptor, sum: sha256.New()})
	}
	if errors.Is(damaged, ErrDigestMismatch) {
		return damaged
	}
	return err
}

// applyLayer applies one layer from its blob and returns its uncompressed size.
func applyLayer(ctx context.Context, a *applier, blob io.Reader, diffID string, budget int64, note func(int64)) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	counted := &countingReader{r: blob, note: note}
	s := newLayerStream(ctx, counted, budget)
	defer s.wait()
	defer cancel()
	if err := a.apply(ctx, s); err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, s); err != nil {
		return 0, err
	}
	if s.diffID != diffID {
		return 0, &Error{Kind: ErrDigestMismatch, Err: fmt.Errorf("its contents have the diff ID %s instead of %s", s.diffID, diffID)}
	}
	return s.total, nil
}

// countingReader reports how far a blob has been read.
type countingReader struct {
	r    io.Reader
	n    int64
	note func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.note(c.n)
	return n, err
}
