package agent

import (
	"bufio"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ports says where programs listen.
func (st *stream) ports() error {
	var all []listening
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if os.IsNotExist(err) {
			continue // a guest without IPv6
		}
		if err != nil {
			return err
		}
		all = append(all, parseListening(bufio.NewScanner(f))...)
		f.Close()
	}
	st.reply(wire.Reply{Ports: oldestFirst(all)})
	return nil
}

// listening is a socket that waits for connections.
type listening struct {
	port  uint16
	inode uint64 // numbers rise with the time of making
}

// parseListening reads a table of the kernel's (proc_net_tcp.txt: local address, state and inode are fields 2, 4 and 10). Addresses that the
// loopback one does not reach are left out.
func parseListening(s *bufio.Scanner) (all []listening) {
	const stateListen = "0A"
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 10 || f[3] != stateListen {
			continue
		}
		address, portText, _ := strings.Cut(f[1], ":")
		port, err := strconv.ParseUint(portText, 16, 16)
		inode, err2 := strconv.ParseUint(f[9], 10, 64)
		if err == nil && err2 == nil && reachable(address) {
			all = append(all, listening{uint16(port), inode})
		}
	}
	return all
}

// reachable reports whether an address as the kernel prints it is a loopback one or stands for all: words in the host's byte order.
func reachable(address string) bool {
	switch {
	case len(address) == 8:
		return address == "00000000" || strings.HasSuffix(address, "7F")
	case strings.Trim(address, "0") == "":
		return true
	}
	return address == "00000000000000000000000001000000"
}

func oldestFirst(all []listening) (ports []uint16) {
	slices.SortFunc(all, func(a, b listening) int {
		if a.inode < b.inode {
			return -1
		}
		return 1
	})
	for _, l := range all {
		if !slices.Contains(ports, l.port) && len(ports) < wire.MaxPorts {
			ports = append(ports, l.port)
		}
	}
	return ports
}
