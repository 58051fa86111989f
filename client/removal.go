package client

import (
	"context"
	"sync"

	"github.com/claudefs/claudefs/cfs"
)

// removals are the commands on their way that may end an inode, since it was not open here when they were
// made. Who opens it meanwhile waits for them: either the removal sees that the inode is
// open, or the one who opens it sees the removal.
type removals struct {
	mu  sync.Mutex // no other lock is taken under it
	set map[*removal]struct{}
}

// removal is one of them; ino 0: it may be any inode.
type removal struct {
	ino  cfs.Ino
	done chan struct{}
}

// begin notes a removal, until the returned function is called.
func (m *removals) begin(i cfs.Ino) (end func()) {
	r := &removal{i, make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.set == nil {
		m.set = map[*removal]struct{}{}
	}
	m.set[r] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.set, r)
		close(r.done)
	}
}

// wait waits for the removals of now that may end an inode.
func (m *removals) wait(ctx context.Context, i cfs.Ino) error {
	var all []*removal
	m.mu.Lock()
	for r := range m.set {
		if r.ino == i || r.ino == 0 {
			all = append(all, r)
		}
	}
	m.mu.Unlock()
	for _, r := range all {
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctxError("open", ctx)
		}
	}
	return nil
}

// holdTarget sets op.Ino, and op.Hold where this client has that inode open, and
// keeps it as it is, open or not, until the returned function is called.
func (c *Client) holdTarget(ctx context.Context, op *cfs.Op, dir cfs.Ino, name string, anew bool) (release func()) {
	if op.Kind == cfs.OpRmdir {
		return func() {} // directories are not held
	}
	if c.openCount() == 0 {
		over := c.removals.begin(0)
		if c.openCount() == 0 {
			return over
		}
		over()
	}
	look := c.Lookup
	if anew {
		look = c.lookup
	}
	a, err := look(ctx, dir, name)
	if err != nil {
		return c.removals.begin(0) // the operation itself will say why
	}
	op.Ino = a.Ino
	over := c.removals.begin(a.Ino)
	n := c.find(a.Ino)
	if n == nil || !c.retain(n) {
		return over
	}
	over()
	op.Hold = true
	return func() { c.release(context.WithoutCancel(ctx), n) }
}
