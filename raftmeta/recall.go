package raftmeta

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/lease"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// maxAcks bounds the answers in one watch.
const maxAcks = 4 * maxWatchRecalls

// serveWatch takes a session's answers to recalls, and waits a while for new recalls. A later
// watch of the session takes its place: this one then answers at once.
func (n *Node) serveWatch(ctx context.Context, r *wire.Request) (wire.Response, error) {
	var m wirepb.Watch
	if err := r.Decode(&m); err != nil {
		return wire.Response{}, err
	}
	if len(m.Acks) > maxAcks {
		return wire.Response{}, cfs.Errorf("watch", cfs.BadRequest, "%d answers, at most %d", len(m.Acks), maxAcks)
	}
	d := n.duties.Load()
	if d == nil {
		return wire.Response{}, n.notLeader("watch")
	}
	reply, err := d.leases.watch(ctx, &m)
	if cfs.KindOf(err) == cfs.NoSession { // which is final: make sure that this node still leads
		if err := n.confirm(ctx, "watch"); err != nil {
			return wire.Response{}, err
		}
		if n.duties.Load() != d { // a later term of this node was confirmed
			return wire.Response{}, n.notLeader("watch")
		}
	}
	if err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Body: reply}, nil
}

func (l *leases) watch(ctx context.Context, m *wirepb.Watch) (*wirepb.WatchReply, error) {
	id := cfs.SessionID(m.Session)
	wake := make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range m.Acks {
		attr := wire.AttrFromPB(a.Attr)
		l.t.Ack(id, a.Id, lease.Answer(a.Kind), &attr)
	}
	defer l.t.Unnotify(id, wake)
	end := l.now() + watchTime
	timer := time.NewTimer(watchTime)
	defer timer.Stop()
	for first := true; ; first = false {
		if !first && !l.t.Notified(id, wake) { // another watch has come
			return &wirepb.WatchReply{Epoch: m.Epoch}, nil
		}
		epoch, ok := l.t.Notify(id, m.Epoch, wake)
		if !ok {
			return nil, cfs.Errorf("watch", cfs.NoSession, "session %d", id)
		}
		now := l.now()
		due, next := l.t.Due(id, nil, maxWatchRecalls, now)
		if len(due) > 0 || epoch != m.Epoch || now >= end {
			return watchReply(epoch, due), nil
		}
		if next == 0 || next > end {
			next = end
		}
		timer.Reset(next - now)
		if err := l.sleep(ctx, wake, timer.C); err != nil {
			return nil, err
		}
	}
}

func watchReply(epoch uint64, due []lease.Recall) *wirepb.WatchReply {
	out := &wirepb.WatchReply{Epoch: epoch}
	for _, r := range due {
		p := &wirepb.Recall{Id: r.ID, Kind: uint32(r.Key.Kind), Held: r.Held}
		switch r.Key.Kind {
		case lease.Name:
			p.Dir, p.Name = uint64(r.Key.Ino), []byte(r.Key.Name)
		case lease.List:
			p.Dir = uint64(r.Key.Ino)
		default:
			p.Ino = uint64(r.Key.Ino)
		}
		out.Recalls = append(out.Recalls, p)
	}
	return out
}

// measureLeases brings the metrics up to date.
func (d *duties) measureLeases(context.Context) error {
	l, m := d.leases, d.n.metrics
	l.mu.Lock()
	now, was := l.t.Stats, l.counted
	l.counted = now
	m.leases.Set(float64(l.t.Leases()))
	l.mu.Unlock()
	for k := lease.Attr; k <= lease.Exclusive; k++ {
		m.recalls.WithLabelValues(k.String()).Add(float64(now.Recalls[k] - was.Recalls[k]))
	}
	m.lapses.Add(float64(now.Lapses - was.Lapses))
	m.refused.Add(float64(now.Refused - was.Refused))
	return nil
}
