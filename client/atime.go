package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxAccesses bounds the readings that the cluster has not been told of: of more the times are lost.
	maxAccesses = 16 << 10
	// tellAccessesAfter is how long they wait for others, so that reading a tree costs few commands.
	tellAccessesAfter = time.Second
)

// accesses are the times of readings that the cluster does not know yet. They are good for relatime alone: nobody
// waits for them, and a client that dies takes them with it.
type accesses struct {
	count atomic.Int64 // of at, so that who asks for attributes meets no lock where there are none
	mu    sync.Mutex
	at    map[cfs.Ino]int64
}

// note takes note of a reading.
func (s *accesses) note(i cfs.Ino, atNS int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = make(map[cfs.Ino]int64)
	}
	if _, there := s.at[i]; there || len(s.at) < maxAccesses {
		s.at[i] = atNS
	}
	s.count.Store(int64(len(s.at)))
}

// over is attributes with what the cluster does not know yet.
func (s *accesses) over(a cfs.Attr) cfs.Attr {
	if s.count.Load() == 0 {
		return a
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, there := s.at[a.Ino]; there && a.AtimeDue(at) {
		a.AtimeNS = at
	}
	return a
}

// forget drops what is noted of an inode: somebody sets the time.
func (s *accesses) forget(i cfs.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.at, i)
	s.count.Store(int64(len(s.at)))
}

// some is up to n of them, as operations.
func (s *accesses) some(n int) []cfs.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []cfs.Op
	for i, at := range s.at {
		if len(ops) == n {
			break
		}
		ops = append(ops, cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: cfs.SetRelatime, Attr: cfs.Attr{AtimeNS: at}})
	}
	return ops
}

// told drops what the cluster has been told; a later reading of the same inode stays.
func (s *accesses) told(ops []cfs.Op) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range ops {
		if s.at[ops[i].Ino] == ops[i].Attr.AtimeNS {
			delete(s.at, ops[i].Ino)
		}
	}
	s.count.Store(int64(len(s.at)))
}

// accessed takes note that a file was read through f, the first time, where relatime wants it known.
func (f *File) accessed() {
	if f.c.cfg.NoAtime || f.flags&unix.O_NOATIME != 0 || f.accessNoted.Load() || f.accessNoted.Swap(true) {
		return
	}
	f.n.mu.Lock()
	a := f.n.overlayLocked()
	f.n.mu.Unlock()
	if now := time.Now().UnixNano(); a.AtimeDue(now) {
		f.c.accesses.note(f.n.ino, now)
	}
}

// tellAccesses tells the cluster of readings, many in one command.
func (c *Client) tellAccesses(ctx context.Context) {
	for {
		ops := c.accesses.some(maxCombinedOps)
		if len(ops) == 0 {
			return
		}
		if _, err := c.do(ctx, cfs.Cred{}, ops...); err != nil {
			c.log.Debug("the times of readings are not told", "files", len(ops), "err", err)
			return
		}
		c.accesses.told(ops)
	}
}

// tellAccessesOften does so until the client ends.
func (c *Client) tellAccessesOften() {
	tick := time.NewTicker(tellAccessesAfter)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			c.tellAccesses(c.ctx)
		}
	}
}
