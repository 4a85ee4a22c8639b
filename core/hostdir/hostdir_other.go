//go:build !linux

package hostdir

// Dir is a directory that is served; not on this system.
type Dir struct{}

// Session is one mount of a directory by a guest; not on this system.
type Session struct{}

// Open fails with an *OpenError that matches ErrUnsupported.
func Open(path string, _ Options) (*Dir, error) {
	return nil, &OpenError{Path: path, Err: ErrUnsupported}
}

// NewSession returns a session that answers nothing.
func (d *Dir) NewSession() *Session { return &Session{} }

// Close does nothing.
func (d *Dir) Close() error { return nil }

// Handle answers nothing.
func (s *Session) Handle(_, _ [][]byte) int { return 0 }

// Close does nothing.
func (s *Session) Close() {}
