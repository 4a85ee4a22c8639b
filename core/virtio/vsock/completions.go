package vsock

import "time"

// Completions of what the guest sends can wait: its driver does no more with them than free memory. So they have no interrupts of their
// own as long as others come along: packets for the guest, such as replies and credit.
const (
	maxOwed   = 64 // completions without an interrupt; half of the queue's size in Linux is more
	owedDelay = time.Millisecond
)

// completions are those that the driver wants an interrupt for and did not get one.
type completions struct {
	owed  int
	timer *time.Timer
	armed bool
}

// completeSent lets the driver see that n packets of its were taken.
func (d *Device) completeSent(n int) {
	s := &d.sent
	if !d.env.Queues[txQueue].FlushQuietly() && s.owed == 0 {
		return
	}
	if s.owed += n; s.owed >= maxOwed {
		d.announceSent()
		return
	}
	if s.armed {
		return
	}
	s.armed = true
	if s.timer == nil {
		s.timer = time.AfterFunc(owedDelay, d.owedTooLong)
	} else {
		s.timer.Reset(owedDelay)
	}
}

func (d *Device) owedTooLong() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent.armed = false
	if d.live() {
		d.announceSent()
	}
}

// announceSent raises the interrupt that is owed, if any.
func (d *Device) announceSent() {
	if d.sent.owed > 0 {
		d.sent.owed = 0
		d.env.Interrupt()
	}
}

// flushReceived lets the driver see the packets for it. Their interrupt announces completions as well.
func (d *Device) flushReceived() {
	if d.env.Queues[rxQueue].Flush() {
		d.sent.owed = 0
	}
}
