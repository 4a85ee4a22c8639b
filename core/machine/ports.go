package machine

import (
	"io"
	"sync"
)

// The port I/O devices of the board: a 16550 that only transmits, for what the kernel says before its virtio console is up, and as
// much of the 8042 keyboard controller as a reset needs.
const (
	serialBase = 0x3f8
	serialEnd  = serialBase + 7

	keyboardData    = 0x60
	keyboardCommand = 0x64
	keyboardReset   = 0xfe // pulse the CPU's reset line

	cmosData = 0x71
)

// SerialState is what a serial port keeps across a snapshot.
type SerialState struct {
	LineControl, Scratch, InterruptEnable, ModemControl uint8
	DivisorLow, DivisorHigh                             uint8
}

// serial is the transmitting half of a 16550A. Bytes are sent the moment they are written.
type serial struct {
	mu    sync.Mutex
	out   io.Writer
	state SerialState
}

const divisorLatch = 0x80 // bit of the line control register

func (s *serial) write(reg uint64, v uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	switch latch := st.LineControl&divisorLatch != 0; reg {
	case 0:
		if latch {
			st.DivisorLow = v
		} else {
			s.out.Write([]byte{v})
		}
	case 1:
		if latch {
			st.DivisorHigh = v
		} else {
			st.InterruptEnable = v & 0xf
		}
	case 3:
		st.LineControl = v
	case 4:
		st.ModemControl = v
	case 7:
		st.Scratch = v
	}
}

func (s *serial) read(reg uint64) uint8 {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state
	switch latch := st.LineControl&divisorLatch != 0; reg {
	case 0:
		if latch {
			return st.DivisorLow
		}
		return 0
	case 1:
		if latch {
			return st.DivisorHigh
		}
		return st.InterruptEnable
	case 2:
		return 0x01 // no interrupt pending
	case 3:
		return st.LineControl
	case 4:
		return st.ModemControl
	case 5:
		return 0x60 // transmitter empty
	case 6:
		return 0xb0 // carrier, data set ready, clear to send
	default:
		return st.Scratch
	}
}

// portWrite and portRead handle one byte. portWrite reports whether the guest asked for a reset.
func (m *Machine) portWrite(port uint64, v uint8) (reset bool) {
	switch {
	case port >= serialBase && port <= serialEnd:
		m.serial.write(port-serialBase, v)
	case port == keyboardCommand:
		return v == keyboardReset
	}
	return false
}

func (m *Machine) portRead(port uint64) uint8 {
	switch {
	case port >= serialBase && port <= serialEnd:
		return m.serial.read(port - serialBase)
	case port == keyboardCommand, port == keyboardData, port == cmosData:
		return 0 // the keyboard controller is never busy: the kernel polls that before a reset
	}
	return 0xff // nothing there
}
