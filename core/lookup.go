package core

// ExposedPort returns the first TCP port that the image exposes, 0 if there is none: what Bake waits for unless it is told otherwise.
func ExposedPort(img *Image) uint16 { return exposedPort(img) }
