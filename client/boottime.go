package client

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bootEvery is how long a reading of CLOCK_BOOTTIME is gone on from.
	bootEvery = 100 * time.Millisecond
	// bootSlack is how far the wall clock may move against the monotonic one meanwhile.
	bootSlack = time.Millisecond
)

// bootClock is CLOCK_BOOTTIME, which goes on while the machine is suspended. To read it
// takes a system call, so between two readings the monotonic clock, which stands
// still then, tells how much time has passed, and the wall clock whether it has stood still:
// after a suspension the two lie further apart.
type bootClock struct {
	base time.Time
	last atomic.Pointer[bootReading]
}

// bootReading is in nanoseconds.
type bootReading struct {
	mono int64 // since base
	skew int64 // wall clock minus mono
	boot int64 // CLOCK_BOOTTIME minus mono
}

func newBootClock() *bootClock {
	b := &bootClock{base: time.Now()}
	b.read()
	return b
}

// now is CLOCK_BOOTTIME in nanoseconds.
func (b *bootClock) now() int64 {
	t := time.Now()
	mono := int64(t.Sub(b.base))
	r := b.last.Load()
	if d := t.UnixNano() - mono - r.skew; d > int64(bootSlack) || d < -int64(bootSlack) || mono-r.mono > int64(bootEvery) {
		return b.read()
	}
	return mono + r.boot
}

func (b *bootClock) read() int64 {
	t := time.Now()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // Linux has it since 2.6.39
	}
	mono, boot := int64(t.Sub(b.base)), ts.Nano()
	b.last.Store(&bootReading{mono: mono, skew: t.UnixNano() - mono, boot: boot - mono})
	return boot
}
