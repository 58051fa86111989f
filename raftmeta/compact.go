package raftmeta

import (
	"errors"
	"math"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/wal"
)

// flush makes the present store durable.
func (s *state) flush() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.store == nil {
		return cfs.E("flush state", cfs.Closed, nil)
	}
	return s.store.Flush()
}

// maybeCompact truncates the log when it has grown beyond its bounds: the state
// is flushed beside the loop, and what was applied before that may go.
func (l *loop) maybeCompact() error {
	cfg := &l.n.cfg
	if l.flushing || l.applied-l.compacted < cfg.CompactEntries && l.logBytes < cfg.CompactBytes {
		return nil
	}
	l.flushing = true
	applied := l.applied
	l.n.background.Go(func() {
		err := l.n.state.flush()
		l.do(func() error {
			l.flushing = false
			if errors.Is(err, cfs.Closed) {
				return nil
			}
			if err != nil {
				return err
			}
			return l.compact(applied)
		})
	})
	return nil
}

// compact truncates the log below the durable index, less a tail for voters that
// are a little behind: a stream of the whole state costs them more.
func (l *loop) compact(durable uint64) error {
	if durable <= l.compacted {
		return nil // a snapshot was installed meanwhile
	}
	entries, err := l.storage.Entries(l.compacted+1, durable+1, math.MaxUint64)
	if err != nil {
		return err
	}
	keep, bytes := 0, int64(0)
	for keep < len(entries) && uint64(keep) < l.n.cfg.CompactEntries/keepShare {
		n := int64(len(entries[len(entries)-1-keep].GetData()))
		if bytes+n > l.n.cfg.CompactBytes/keepShare {
			break
		}
		bytes += n
		keep++
	}
	drop := entries[:len(entries)-keep]
	if len(drop) == 0 {
		return nil
	}
	last := drop[len(drop)-1]
	if err := l.wal.Truncate(&wal.Mark{Index: last.GetIndex(), Term: last.GetTerm(), Conf: l.conf}); err != nil {
		return err
	}
	if err := l.storage.Compact(last.GetIndex()); err != nil {
		return err
	}
	for _, e := range drop {
		l.logBytes -= int64(len(e.GetData()))
	}
	l.compacted = last.GetIndex()
	l.publishIndexes()
	l.n.metrics.compactions.Inc()
	l.n.log.Debug("raft log truncated", "up_to", l.compacted, "log_bytes", l.wal.SizeBytes())
	return nil
}

// publishIndexes shows the log's position to other goroutines.
func (l *loop) publishIndexes() {
	l.n.indexes.applied.Store(l.applied)
	l.n.indexes.first.Store(l.compacted + 1)
	l.n.indexes.committed.Store(max(l.hard.GetCommit(), l.applied))
	l.n.metrics.applied.Set(float64(l.applied))
}
