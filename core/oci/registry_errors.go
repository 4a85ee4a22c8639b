package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registryError makes an error of talking to a registry ours. Nothing that the
// registry sent, nor a URL's query or a header, gets into its text: they may
// hold credentials.
func registryError(ctx context.Context, err error, host string) error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errIdle) {
			return &Error{Kind: ErrUnreachable, Err: fmt.Errorf("%s: %w", host, cause), Hint: "the registry is too slow or hangs; try again"}
		}
		return cause
	}
	var status *transport.Error
	if errors.As(err, &status) {
		return statusError(status, host)
	}
	return networkError(err, host)
}

// statusError explains an HTTP status that is not success.
func statusError(err *transport.Error, host string) error {
	e := &Error{Err: fmt.Errorf("%s answered %d %s%s", host, err.StatusCode, http.StatusText(err.StatusCode), errorCodes(err))}
	switch code := err.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Kind, e.Hint = ErrUnauthorized, "check the image's name, or log in with: docker login "+host
	case code == http.StatusNotFound:
		e.Kind, e.Hint = ErrNotFound, "check the image's name and tag"
	case code == http.StatusTooManyRequests:
		e.Kind, e.Hint, e.transient = ErrRateLimited, "try again later, or log in with: docker login "+host, true
	case code == http.StatusRequestedRangeNotSatisfiable:
		e.Kind = ErrDigestMismatch
	case code >= 500, code == http.StatusRequestTimeout:
		e.Kind, e.Hint, e.transient = ErrUnreachable, "the registry is failing; try again later", true
	default:
		e.Kind, e.Hint = ErrUnreachable, "is this a container registry?"
	}
	return e
}

// errorCodes lists the codes of the registry's answer, without its messages.
func errorCodes(err *transport.Error) string {
	var codes []string
	for _, d := range err.Errors {
		code := string(d.Code)
		if code != "" && len(code) <= 40 && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == "" && len(codes) < 3 {
			codes = append(codes, code)
		}
	}
	if len(codes) == 0 {
		return ""
	}
	return " (" + strings.Join(codes, ", ") + ")"
}

// networkError explains an error below HTTP.
func networkError(err error, host string) error {
	e := &Error{Kind: ErrUnreachable, Hint: "is the registry running and the network up?"}
	var (
		dns     *net.DNSError
		op      *net.OpError
		cert    *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		plain   tls.RecordHeaderError
		u       *url.Error
	)
	// The error may be two: HTTPS is not spoken, and plain HTTP, which is allowed, timed out.
	timeout := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &u) && u.Timeout() || errors.As(err, &op) && op.Timeout()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Err = fmt.Errorf("%s: %w", host, syscall.ECONNREFUSED)
	case errors.As(err, &cert), errors.As(err, &unknown):
		e.Err, e.Hint = fmt.Errorf("%s: its certificate is not trusted", host), "install its CA certificate, or list it as an insecure registry"
	case errors.As(err, &dns):
		e.Err, e.Hint = fmt.Errorf("%s: no such host", host), "check the registry's name and the network"
		if !dns.IsNotFound {
			e.Err, e.transient = fmt.Errorf("%s: its name cannot be looked up", host), true
		}
	case timeout:
		e.Err, e.Hint = fmt.Errorf("%s: timed out", host), "the registry is too slow or hangs; try again"
	case errors.Is(err, errPlainHTTP), errors.As(err, &plain), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.Err, e.Hint = fmt.Errorf("%s does not speak HTTPS", host), "if you trust the network, list it as an insecure registry"
	case errors.As(err, &op):
		e.Err, e.transient = fmt.Errorf("%s: %w", host, op.Err), true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Err, e.transient = fmt.Errorf("%s: connection closed in the middle", host), true
	default:
		e.Err, e.Hint = fmt.Errorf("%s: unexpected answer", host), "is this a container registry?"
	}
	return e
}

// retry calls f until it succeeds, fails for good or has failed too often.
func retry(ctx context.Context, n network, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		var e *Error
		if !errors.As(err, &e) || !e.transient || attempt == maxAttempts || e.retryAfter > maxRetryAfter {
			return err
		}
		if err := pause(ctx, max(n.retryDelay<<(attempt-1), e.retryAfter)); err != nil {
			return err
		}
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
