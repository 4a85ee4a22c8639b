package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// setNetwork sets up the guest's network as the host says, or takes down the one that it may have from the guest that it was copied from. There is
// nobody to ask: the host knows all of it.
func (s *Server) setNetwork(n *wire.Network) error {
	s.mounted.mu.Lock()
	defer s.mounted.mu.Unlock()
	if n == nil {
		if s.mounted.network == "" {
			return nil
		}
		defer func() { s.mounted.network = "" }()
		return SetLink(s.mounted.network, false)
	}
	address, err1 := netip.ParseAddr(n.Address)
	gateway, err2 := netip.ParseAddr(n.Gateway)
	if err1 != nil || err2 != nil || !address.Is4() || !gateway.Is4() || n.PrefixBits < 1 || n.PrefixBits > 32 {
		return &wire.Error{Kind: wire.KindInvalid, Message: "the network's addresses are none"}
	}
	device, err := bindDevice(n.Slot)
	if err != nil {
		return err
	}
	found, err := filepath.Glob(device + "/net/*")
	if err != nil || len(found) != 1 {
		return &wire.Error{Kind: wire.KindIO, Message: "the network's device is no interface"}
	}
	name := path.Base(found[0])
	if err := withSocket(func(fd int) error { return configure(fd, name, n, address, gateway) }); err != nil {
		return err
	}
	s.mounted.network = name
	s.threads.do(func() { setResolver(n.Gateway) })
	return nil
}

func withSocket(f func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	defer unix.Close(fd)
	return f(fd)
}

// configure sets an interface's MTU, addresses and route (netdevice(7)).
func configure(fd int, name string, n *wire.Network, address, gateway netip.Addr) error {
	var mask [4]byte
	for i := range n.PrefixBits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	a := address.As4()
	for _, step := range []struct {
		what string
		req  uint
		set  func() error
	}{
		{"size of packets", unix.SIOCSIFMTU, func() error { ifr.SetUint32(uint32(n.MTU)); return nil }},
		{"address", unix.SIOCSIFADDR, func() error { return ifr.SetInet4Addr(a[:]) }},
		{"size", unix.SIOCSIFNETMASK, func() error { return ifr.SetInet4Addr(mask[:]) }},
	} {
		err := step.set()
		if err == nil {
			err = unix.IoctlIfreq(fd, step.req, ifr)
		}
		if err != nil {
			return fmt.Errorf("set the %s of the network: %w", step.what, err)
		}
	}
	if err := setFlags(fd, name, linkUp); err != nil {
		return err
	}
	return addRoute(fd, gateway)
}

const linkUp = unix.IFF_UP | unix.IFF_RUNNING

// SetLink switches an interface of the guest on or off.
func SetLink(name string, up bool) error {
	var flags uint16
	if up {
		flags = linkUp
	}
	return withSocket(func(fd int) error { return setFlags(fd, name, flags) })
}

func setFlags(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return fmt.Errorf("switch the network: %w", err)
	}
	return nil
}

// rtentry is struct rtentry of linux/route.h, on 64-bit machines.
type rtentry struct {
	_                     uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	_                     [6]byte
	_                     uint64
	_                     [8]byte
	metric                int16
	_                     [6]byte
	dev                   uintptr
	mtu, window           uint64
	irtt                  uint16
	_                     [6]byte
}

// addRoute makes the gateway lead everywhere else.
func addRoute(fd int, gateway netip.Addr) error {
	any := unix.RawSockaddrInet4{Family: unix.AF_INET}
	r := rtentry{dst: any, gateway: any, genmask: any, flags: unix.RTF_UP | unix.RTF_GATEWAY}
	r.gateway.Addr = gateway.As4()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r)))
	if errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("set the route of the network: %w", errno)
	}
	return nil
}

// setResolver names the gateway as name server, on a thread in the container. An image may have anything at that path; what is no regular file is
// replaced, and where that fails the network still works by addresses.
func setResolver(server string) {
	const file = "/etc/resolv.conf"
	if st, err := os.Lstat(file); err == nil && !st.Mode().IsRegular() {
		os.Remove(file)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if errors.Is(err, unix.ENOENT) {
		os.Mkdir("/etc", 0o755)
		f, err = os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	}
	if err != nil {
		return
	}
	defer f.Close()
	f.WriteString("nameserver " + server + "\n")
}
