package snapshot

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strconv"
)

// castagnoli is the polynomial that CPUs have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// sealLimit bounds the first line of a sealed file, in bytes.
const sealLimit = 128

// seal puts before body a line with which unseal can tell whether it is whole.
func seal(kind string, version int, body []byte) []byte {
	return append(sealLine(kind, version, body), body...)
}

func sealLine(kind string, version int, body []byte) []byte {
	return fmt.Appendf(nil, "%s %d crc32c:%08x %d\n", kind, version, checksum(body), len(body))
}

// unseal returns the version and the body of what seal made. The body is a part of data. An error says in what way it is not.
func unseal(kind string, data []byte) (version int, body []byte, err error) {
	n := bytes.IndexByte(data[:min(len(data), sealLimit)], '\n')
	if n < 0 {
		return 0, nil, fmt.Errorf("first line is missing")
	}
	line, body := data[:n+1], data[n+1:]
	fields := bytes.Split(data[:n], []byte(" "))
	if len(fields) != 4 || string(fields[0]) != kind {
		return 0, nil, fmt.Errorf("does not begin with %q", kind)
	}
	if version, err = strconv.Atoi(string(fields[1])); err != nil || version < 1 {
		return 0, nil, fmt.Errorf("no version in the first line")
	}
	if string(fields[3]) != strconv.Itoa(len(body)) {
		return 0, nil, fmt.Errorf("%d bytes after the first line instead of %.20s", len(body), fields[3])
	}
	if !bytes.Equal(line, sealLine(kind, version, body)) {
		return 0, nil, fmt.Errorf("checksum is crc32c:%08x instead of %.20s", checksum(body), fields[2])
	}
	return version, body, nil
}
