package raftmeta

import (
	"context"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// checkState compares the tables of this node's replica with each other, one caller
// at a time. It sees the state of one moment and is in nobody's way: where the
// state is to be replaced, or the node ends, it gives up.
func (n *Node) checkState(ctx context.Context) (*wirepb.CheckReply, error) {
	const op = "check state"
	if !n.checking.TryLock() {
		return nil, cfs.Errorf(op, cfs.Busy, "a check is under way")
	}
	defer n.checking.Unlock()
	var r *fsm.CheckReport
	err := n.state.view(func(v kv.View) (err error) {
		r, err = fsm.Check(&endedReader{Reader: v, ended: func() error {
			switch {
			case ctx.Err() != nil:
				return cfs.E(op, contextKind(ctx), ctx.Err())
			case n.state.replacing.Load():
				return cfs.Errorf(op, cfs.Unavailable, "the state is being replaced")
			}
			return nil
		}})
		return err
	})
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return &wirepb.CheckReply{AppliedIndex: r.AppliedIndex, Inodes: r.Inodes, Extents: r.Extents, Stripes: r.Stripes, Faults: r.Faults, Examples: r.Examples}, nil
}

// endedReader is a state whose scans end when ended says so.
type endedReader struct {
	fsm.Reader
	ended func() error
}

// Scan is fsm.Reader's.
func (r *endedReader) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return r.Reader.Scan(lo, hi, func(k, v []byte) (bool, error) {
		if err := r.ended(); err != nil {
			return false, err
		}
		return fn(k, v)
	})
}
