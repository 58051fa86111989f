package client

import (
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of the commits that nobody waits for.
const (
	// maxCombinedOps bounds the operations of a common command.
	maxCombinedOps = 64
	// combineWorkers bounds the common commands in flight.
	combineWorkers = 4
	// combineAfter is how long the first waits for others.
	combineAfter = 5 * time.Millisecond
)

// combiner puts the commits of many inodes into common commands.
type combiner struct {
	mu      sync.Mutex
	queue   []*combined // at most one of each inode in the table
	workers int
}

// combined is a commit that waits for its turn.
type combined struct {
	sess    *session
	ops     []cfs.Op
	extents int
	inline  uint64
	res     []cfs.Result
	err     error
	done    chan struct{}
}

// carry carries out operations together with others, or alone where that is refused.
func (m *combiner) carry(c *Client, s *session, ops []cfs.Op) ([]cfs.Result, error) {
	k := &combined{sess: s, ops: ops, done: make(chan struct{})}
	for i := range ops {
		k.extents += len(ops[i].Extents)
		for j := range ops[i].Extents {
			if x := &ops[i].Extents[j]; x.Kind == cfs.ExtentInline {
				k.inline += x.Len
			}
		}
	}
	m.mu.Lock()
	m.queue = append(m.queue, k)
	if m.workers < combineWorkers {
		m.workers++
		c.wg.Add(1)
		go m.work(c)
	}
	m.mu.Unlock()
	<-k.done // the client's end ends the commands
	return k.res, k.err
}

func (m *combiner) work(c *Client) {
	defer c.wg.Done()
	sleep(c.ctx, combineAfter)
	for {
		group := m.take()
		if len(group) == 0 {
			return
		}
		c.commitGroup(group)
	}
}

// take is what the next command carries; a worker that gets nothing has ended.
func (m *combiner) take() []*combined {
	m.mu.Lock()
	defer m.mu.Unlock()
	ops, extents, inline, n := 0, 0, uint64(0), 0
	for ; n < len(m.queue); n++ {
		k := m.queue[n]
		ops, extents, inline = ops+len(k.ops), extents+k.extents, inline+k.inline
		if n > 0 && (k.sess != m.queue[0].sess || ops > maxCombinedOps || extents > maxBatchExtents || inline > maxBatchInline) {
			break
		}
	}
	group := m.queue[:n:n]
	if m.queue = m.queue[n:]; n == 0 {
		m.queue = nil
		m.workers--
	}
	return group
}

// commitGroup carries out commits in one command. One that is refused spoils it for all: then each
// goes alone.
func (c *Client) commitGroup(group []*combined) {
	var ops []cfs.Op
	for _, k := range group {
		ops = append(ops, k.ops...)
	}
	c.stats.commits.Add(1)
	res, _, err := c.doIn(c.ctx, group[0].sess, cfs.Cred{}, ops)
	alone := err != nil && len(group) > 1 && !again(err) && cfs.KindOf(err) != cfs.NoSession
	for _, k := range group {
		switch {
		case alone:
			c.stats.commits.Add(1)
			k.res, _, k.err = c.doIn(c.ctx, k.sess, cfs.Cred{}, k.ops)
		case err != nil:
			k.err = err
		default:
			k.res, res = res[:len(k.ops)], res[len(k.ops):]
		}
		close(k.done)
	}
}
