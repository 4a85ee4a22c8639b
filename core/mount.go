package core

import (
	"errors"

	"github.com/supermachine/supermachine/core/virtio"
)

type Mount struct {
	Dir      string
	Path     string
	ReadOnly bool
}

func openMount(m Mount, i int) (virtio.Device, string, error) {
	return nil, "", errors.New("not yet")
}

func ParseMount(s string) (Mount, error) { return Mount{}, errors.New("not yet") }
