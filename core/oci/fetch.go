package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// fetch is one blob on its way from a registry into the store. What has arrived
// can be read while the rest does.
type fetch struct {
	store *Store
	src   source
	desc  v1.Descriptor
	note  func(done int64) // progress
	// retryDelay is the wait before the first retry; it doubles each time.
	retryDelay time.Duration

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when one of the following changes
	file    *os.File
	ready   int64 // bytes of file that may be read
	done    bool
	err     error
}

func newFetch(s *Store, src source, d v1.Descriptor, retryDelay time.Duration, note func(int64)) *fetch {
	return &fetch{store: s, src: src, desc: d, note: note, retryDelay: retryDelay, changed: make(chan struct{})}
}

func (f *fetch) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fetch) publish(file *os.File, n int64) {
	f.update(func() { f.file, f.ready = file, n })
	f.note(n)
}

// close gives up the file; nothing may read any more.
func (f *fetch) close() {
	if f.file != nil {
		f.file.Close()
	}
}

// run downloads the blob, unless it is there already. Processes that want the same one take turns.
func (f *fetch) run(ctx context.Context) error {
	err := f.locked(ctx)
	err = withContext(err, "fetch", "", f.desc.Digest.String())
	f.update(func() { f.done, f.err = true, err })
	return err
}

func (f *fetch) locked(ctx context.Context) error {
	l, err := lock(ctx, f.store.blobLock(f.desc.Digest.Hex), false, false)
	if err != nil {
		return err
	}
	defer l.unlock()
	final := f.store.blobPath(f.desc.Digest.Hex)
	if file, err := os.Open(final); err == nil {
		if n, sum, err := hashFile(file); err == nil && n == f.desc.Size && sum == f.desc.Digest.Hex {
			f.publish(file, n)
			return nil
		}
		file.Close()
		os.Remove(final)
	}
	file, err := os.OpenFile(final+partSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = f.download(ctx, file)
	if err == nil {
		err = os.Rename(file.Name(), final)
	} else if !resumable(err) {
		os.Remove(file.Name())
	}
	if err != nil && f.file != file {
		file.Close()
	}
	return err
}

const partSuffix = ".part"

// resumable says whether what has been downloaded is worth keeping after an error.
func resumable(err error) bool {
	return isContextError(err) || errors.Is(err, ErrUnreachable) || errors.Is(err, ErrRateLimited)
}

// hashFile returns the size and SHA-256 of a file from its start, leaving its position at the end.
func hashFile(file *os.File) (int64, string, error) {
	sum := sha256.New()
	n, err := io.Copy(sum, file)
	return n, hex.EncodeToString(sum.Sum(nil)), err
}

// download completes a partial file, which an earlier run may have begun. If
// that beginning turns out to be bad, it starts over once.
func (f *fetch) download(ctx context.Context, file *os.File) error {
	sum := sha256.New()
	n, err := io.Copy(sum, file)
	if err != nil {
		return err
	}
	if n > 0 && n <= f.desc.Size {
		d := downloader{fetch: f, file: file, sum: sum, n: n}
		err := d.run(ctx)
		if err == nil {
			f.publish(file, d.n)
			return nil
		}
		if !errors.Is(err, ErrDigestMismatch) {
			return err
		}
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	d := downloader{fetch: f, file: file, sum: sha256.New(), follow: true}
	d.publish()
	return d.run(ctx)
}

// downloader appends to a partial file until it is complete.
type downloader struct {
	*fetch
	file   *os.File
	sum    hash.Hash
	n      int64
	follow bool // publish while downloading: nothing read so far can be stale
}

func (d *downloader) publish() {
	if d.follow {
		d.fetch.publish(d.file, d.n)
	} else {
		d.note(d.n)
	}
}

// worthwhile is how many bytes a request must bring not to count as a failure.
const worthwhile = 64 << 10

func (d *downloader) run(ctx context.Context) error {
	for failures := 0; d.n < d.desc.Size; {
		before := d.n
		err := d.request(ctx)
		var e *Error
		switch cut := d.mismatch("the blob ends after %d of %d bytes", d.n, d.desc.Size); {
		case d.n == d.desc.Size && !errors.Is(err, ErrDigestMismatch):
			continue
		case err == nil && d.n == before:
			return cut
		case err == nil:
			err = cut
		case errors.Is(err, errIdle) && d.n > before:
		case !errors.As(err, &e) || !e.transient:
			return err
		}
		if d.n-before >= worthwhile {
			failures = 0
		}
		if failures++; failures == maxAttempts {
			return err
		}
		if err := pause(ctx, d.retryDelay<<(failures-1)); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(d.sum.Sum(nil)); got != d.desc.Digest.Hex {
		return d.mismatch("the blob's digest is sha256:%s", got)
	}
	return nil
}

func (d *downloader) mismatch(format string, args ...any) error {
	return &Error{Kind: ErrDigestMismatch, Digest: d.desc.Digest.String(), Err: fmt.Errorf(format, args...), Hint: "the registry's copy is damaged, or something on the way changed it"}
}

// request reads one response as far as it goes.
func (d *downloader) request(ctx context.Context) error {
	body, start, err := d.src.blob(ctx, d.desc, d.n)
	if errors.Is(err, ErrDigestMismatch) {
		return nil // there is nothing at this offset
	}
	if err != nil {
		return final(err)
	}
	defer body.Close()
	if _, err := io.CopyN(io.Discard, body, d.n-start); err != nil {
		if err == io.EOF {
			return nil
		}
		return err
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if d.n+int64(n) > d.desc.Size {
				return d.mismatch("the blob is longer than its %d bytes", d.desc.Size)
			}
			if _, err := d.file.WriteAt(buf[:n], d.n); err != nil {
				return err
			}
			d.sum.Write(buf[:n])
			d.n += int64(n)
			d.publish()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// final marks an error as one after which enough has been tried.
func final(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	last := *e
	last.transient = false
	return &last
}

// reader returns a reader that waits for what has not arrived yet.
func (f *fetch) reader(ctx context.Context) io.Reader { return &followReader{fetch: f, ctx: ctx} }

type followReader struct {
	*fetch
	ctx context.Context
	pos int64
}

func (r *followReader) Read(p []byte) (int, error) {
	for {
		r.mu.Lock()
		file, ready, done, err, changed := r.file, r.ready, r.done, r.err, r.changed
		r.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case r.pos < ready:
			n, err := file.ReadAt(p[:min(int64(len(p)), ready-r.pos)], r.pos)
			r.pos += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		case done:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// wait returns how the download ended, nil if it went well, once it has.
func (f *fetch) wait(ctx context.Context) error {
	for {
		f.mu.Lock()
		done, err, changed := f.done, f.err, f.changed
		f.mu.Unlock()
		if done {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// checkReader checks a local blob against its descriptor while it is read to its end.
type checkReader struct {
	r    io.Reader
	desc v1.Descriptor
	sum  hash.Hash // nil to check the size only
	n    int64
}

func (c *checkReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.sum != nil {
		c.sum.Write(p[:n])
	}
	c.n += int64(n)
	digest := c.desc.Digest.String()
	switch {
	case c.n > c.desc.Size:
		return 0, &Error{Kind: ErrDigestMismatch, Digest: digest, Err: fmt.Errorf("the blob is longer than its %d bytes", c.desc.Size)}
	case err == io.EOF && c.n < c.desc.Size:
		return n, &Error{Kind: ErrDigestMismatch, Digest: digest, Err: fmt.Errorf("the blob ends after %d of %d bytes", c.n, c.desc.Size)}
	case err == io.EOF && c.sum != nil:
		if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.desc.Digest.Hex {
			return n, &Error{Kind: ErrDigestMismatch, Digest: digest, Err: fmt.Errorf("the blob's digest is sha256:%s", got)}
		}
	case err != nil && err != io.EOF:
		return n, readError(err, digest)
	}
	return n, err
}

// readError makes an error of reading a blob of a local image ours.
func readError(err error, digest string) error {
	return withContext(sourceError(err, "the blob"), "", "", digest)
}

func (s *Store) blobPath(hex string) string { return s.path("blobs", "sha256", hex) }
func (s *Store) blobLock(hex string) string { return s.path("locks", "blob-"+hex) }

// dropBlobs removes blobs that are no longer needed here. One that another
// process is just fetching is left to it; one that it reads stays readable.
func (s *Store) dropBlobs(layers []layer) {
	for _, l := range layers {
		held, err := tryLock(s.blobLock(l.Digest.Hex), false, false)
		if err != nil {
			continue
		}
		for _, suffix := range []string{"", partSuffix} {
			os.Remove(s.blobPath(l.Digest.Hex) + suffix)
		}
		held.unlock()
	}
}
