package oci

// Dir returns a store's directory.
func (s *Store) Dir() string { return s.dir }
