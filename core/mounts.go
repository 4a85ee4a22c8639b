package core

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/core/virtio/fs"
)

// MaxMounts is how many volumes and mounts a VM has at most, together.
const MaxMounts = wire.MaxFileSystems

// The board's places: the devices that every VM has come first, in a fixed order. Those of volumes and mounts are twice as many as can be attached,
// as a copy of a guest has what it is given besides what the original had, until the guest has let go of that.
const (
	firstAttachSlot = networkSlot + 1
	attachSlots     = 2 * MaxMounts
)

// splitAttachment takes HOST:/GUEST[:OPTION…] apart: the guest's path begins with the first ":/".
func splitAttachment(s, kind, form string) (host, guest string, options []string, err error) {
	i := strings.Index(s, ":/")
	if i <= 0 {
		return "", "", nil, badAttachment(kind, s, "give "+form)
	}
	parts := strings.Split(s[i+1:], ":")
	return s[:i], parts[0], parts[1:], nil
}

func badAttachment(kind, s, text string) error {
	return &Error{Code: ErrInvalidArgument, Op: "read " + kind, Object: strconv.Quote(s), Err: errors.New(text)}
}

// checkAttachments returns what is wrong with volumes and mounts, as far as that can be told without looking at the host.
func checkAttachments(volumes []Volume, mounts []Mount) error {
	if n := len(volumes) + len(mounts); n > MaxMounts {
		return &Error{Code: ErrInvalidArgument, Op: "attach", Err: fmt.Errorf("%d volumes and mounts, at most %d are possible", n, MaxMounts)}
	}
	seen := map[string]bool{}
	check := func(kind, host, guest string) error {
		bad := func(text string) error {
			return &Error{Code: ErrInvalidArgument, Op: "attach " + kind, Object: host, Err: errors.New(text)}
		}
		switch {
		case host == "":
			return bad("no path of the host is given")
		case !path.IsAbs(guest) || path.Clean(guest) != guest || guest == "/" || strings.IndexByte(guest, 0) >= 0 || len(guest) > 4095:
			return bad(fmt.Sprintf("%q is not an absolute path in the guest, without . and .., below /", guest))
		case seen[guest]:
			return bad("something else is attached at " + guest + " already")
		}
		seen[guest] = true
		return nil
	}
	for _, v := range volumes {
		if err := check("volume", v.File, v.Path); err != nil {
			return err
		}
		if v.SizeMiB != 0 && (v.SizeMiB < minVolumeMiB || v.SizeMiB > maxVolumeMiB) {
			return rangeError("attach volume "+v.File, "size", v.SizeMiB, minVolumeMiB, maxVolumeMiB, " MiB")
		}
	}
	for _, m := range mounts {
		if err := check("mount", m.Dir, m.Path); err != nil {
			return err
		}
	}
	return nil
}

// attachments are the devices of a VM's volumes and mounts, and what the guest has to know of them.
type attachments struct {
	devices [attachSlots]virtio.Device
	list    []agent.FileSystem
}

// openAttachments makes the devices. Where the guest still knows devices of the guest that it was copied from, in the saved state, there are others
// that fail all requests. The caller has the devices from now on.
func openAttachments(c Config, saved []virtio.State) (_ *attachments, err error) {
	if err := checkAttachments(c.Volumes, c.Mounts); err != nil {
		return nil, err
	}
	a := &attachments{}
	defer func() {
		if err != nil {
			closeDevices(a.devices[:])
		}
	}()
	for i := range a.devices {
		if slot := firstAttachSlot + i; slot < len(saved) && saved[slot].DeviceID != 0 {
			if a.devices[i], err = newRevoked(saved[slot]); err != nil {
				return nil, &Error{Code: ErrCorrupt, Op: "read the state of its devices", Err: err}
			}
		}
	}
	for _, v := range c.Volumes {
		op := trace.Begin(trace.FS, v.File)
		disk, fresh, err := openVolume(v)
		op.Step("open volume for %s", v.Path)
		if err != nil {
			return nil, err
		}
		dev, err := c.newDisk(disk, "volume")
		if err != nil {
			return nil, err
		}
		if err := a.add(dev, agent.FileSystem{Kind: wire.FSVolume, Target: v.Path, ReadOnly: v.ReadOnly, Fresh: fresh}); err != nil {
			return nil, err
		}
	}
	for i, m := range c.Mounts {
		op := trace.Begin(trace.FS, m.Dir)
		dev, tag, err := openMount(m, i)
		op.Step("open directory for %s", m.Path)
		if err != nil {
			return nil, err
		}
		if err := a.add(dev, agent.FileSystem{Kind: wire.FSMount, Tag: tag, Target: m.Path, ReadOnly: m.ReadOnly}); err != nil {
			return nil, err
		}
	}
	// What is mounted below something else comes after it.
	slices.SortStableFunc(a.list, func(x, y agent.FileSystem) int { return strings.Count(x.Target, "/") - strings.Count(y.Target, "/") })
	return a, nil
}

// add puts a device into a free place, of which there are enough unless a hostile snapshot fills them.
func (a *attachments) add(dev virtio.Device, at agent.FileSystem) error {
	for i := range a.devices {
		if a.devices[i] == nil {
			a.devices[i] = dev
			at.Slot = firstAttachSlot + i
			a.list = append(a.list, at)
			return nil
		}
	}
	dev.Close()
	return &Error{Code: ErrCorrupt, Op: "find a place for a device", Err: errors.New("the snapshot has devices in all of them")}
}

// newRevoked returns a device that stands in for one that the guest knows and that this VM does not have.
func newRevoked(s virtio.State) (virtio.Device, error) {
	switch s.DeviceID {
	case virtio.IDBlock:
		return block.NewRevoked(s.Device)
	case virtio.IDFileSystem:
		return fs.NewRevoked(s.Device)
	}
	return nil, fmt.Errorf("a device of type %d cannot be attached", s.DeviceID)
}

// unusedSlots takes devices out of a saved state that the guest's drivers have let go of, so that the next copy has their places.
func unusedSlots(st *machine.State) {
	for i := networkSlot; i < len(st.Devices); i++ {
		if st.Devices[i].Status == 0 {
			st.Devices[i] = virtio.State{}
		}
	}
}
