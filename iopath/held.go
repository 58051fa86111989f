package iopath

import (
	"fmt"
	"runtime"
	"strings"
)

// Held describes a Buf that is out: taken from its arena and not released.
type Held struct {
	Bytes int    // as its Bytes are long
	Refs  int    // references
	Taken string // the stack of the Get, a function a line; empty unless Arena.Trace was on
}

// String is the Buf in a line, and its stack in those that follow.
func (h Held) String() string {
	return fmt.Sprintf("a Buf of %d bytes with %d references\n%s", h.Bytes, h.Refs, h.Taken)
}

// Trace keeps, from now on, the stack of each Get with its Buf, for Held. It
// costs an allocation and a microsecond or more a Get: it is for finding leaks.
func (a *Arena) Trace(on bool) { a.trace.Store(on) }

// Held is the Bufs that are out, in no order. A test that ends with some has leaked
// them:
//
//	for _, h := range arena.Held() {
//		t.Errorf("leaked: %s", h)
//	}
func (a *Arena) Held() []Held {
	a.mu.Lock()
	defer a.mu.Unlock()
	held := make([]Held, len(a.out))
	for i, b := range a.out {
		held[i] = Held{Bytes: b.n, Refs: int(b.refs.Load()), Taken: stackText(b.taken)}
	}
	return held
}

// taken notes where b was taken, when that is asked for.
func (a *Arena) taken(b *Buf) *Buf {
	if a.trace.Load() {
		pcs := make([]uintptr, 32)
		pcs = pcs[:runtime.Callers(3, pcs)] // from Get's caller on
		a.mu.Lock()
		b.taken = pcs
		a.mu.Unlock()
	}
	return b
}

func stackText(pcs []uintptr) string {
	if len(pcs) == 0 {
		return ""
	}
	var text strings.Builder
	frames := runtime.CallersFrames(pcs)
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		fmt.Fprintf(&text, "\t%s %s:%d\n", f.Function, f.File, f.Line)
	}
	return text.String()
}
