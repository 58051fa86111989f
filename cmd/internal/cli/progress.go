package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progressEvery is how often a Progress line changes at most.
const progressEvery = 200 * time.Millisecond

// Progress is a line about long work that changes in place. It is shown on
// terminals alone; elsewhere everything it does is nothing. One goroutine at a time uses it.
type Progress struct {
	f     *os.File // nil: not a terminal
	shown time.Time
}

// NewProgress makes a line on w.
func NewProgress(w io.Writer) *Progress { return &Progress{f: Terminal(w)} }

// Terminal is w where it is a terminal, and nil elsewhere.
func Terminal(w io.Writer) *os.File {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return f
}

// Show puts the text in place of what is there, unless that is very new.
func (p *Progress) Show(format string, args ...any) {
	if p.f == nil || time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	fmt.Fprintf(p.f, "\r\x1b[K"+format, args...)
}

// Clear takes the line away.
func (p *Progress) Clear() {
	if !p.shown.IsZero() {
		fmt.Fprint(p.f, "\r\x1b[K")
		p.shown = time.Time{}
	}
}
