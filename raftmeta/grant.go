package raftmeta

import (
	"context"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
	"github.com/claudefs/claudefs/raftmeta/lease"
)

// asked is a query of the namespace on its way: its registration, and what it has met.
type asked struct {
	l     *leases
	q     *cfs.Query
	wait  lease.Wait
	grant lease.Grant

	a     *cfs.Answer
	owned []owned // by other sessions, of what the query saw
	since uint64  // changes that had ended when it was read
}

// namespace answers a query of the namespace, once this node is confirmed to lead: leases are
// registered before the state is read, and what others own exclusively is asked for.
func (l *leases) namespace(ctx context.Context, q *cfs.Query) (a *cfs.Answer, err error) {
	s := &asked{l: l, q: q}
	defer l.cancel(&s.wait)
	opened, err := s.register(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		// Where it failed otherwise another open of the session may count on it; if none does, the
		// session says so when it is asked.
		if opened && err == nil && a.Kind == cfs.Stale {
			l.closed(q.Session, q.Ino)
		}
	}()
	for round := 0; ; round++ {
		if err := s.read(); err != nil {
			return nil, err
		}
		if len(s.owned) == 0 || s.reported() {
			break
		}
		l.mu.Lock()
		l.t.Withdraw(&s.grant) // before the owner commits: it must not wait for this session
		l.mu.Unlock()
		if round > 1 {
			if err := l.pause(ctx); err != nil {
				return nil, err
			}
		}
		done := func() bool { return !s.wait.Waiting() }
		if err := l.recallOwners(ctx, q.Session, &s.wait, s.owned, done); err != nil {
			return nil, err
		}
		s.grant = lease.Grant{}
		l.mu.Lock()
		s.registerLocked()
		l.mu.Unlock()
	}
	err = s.seal()
	return s.a, err
}

// register takes the leases that are known before the state is read, and the inode as open.
func (s *asked) register(ctx context.Context) (opened bool, err error) {
	l, q := s.l, s.q
	open := q.Open && q.Kind == cfs.QueryExtents && q.Session != 0
	for open {
		l.mu.Lock()
		opened = l.t.Opening(&s.wait, q.Session, q.Ino)
		waits := s.wait.Waiting()
		l.mu.Unlock()
		if !waits {
			break
		}
		if err := l.wait(ctx, q.Session, &s.wait, func() bool { return !s.wait.Waiting() }); err != nil {
			return false, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.registerLocked()
	return opened, nil
}

func (s *asked) registerLocked() {
	l, q := s.l, s.q
	s.since = l.t.Changes()
	if q.Session == 0 || q.Epoch == 0 {
		return
	}
	switch q.Kind {
	case cfs.QueryLookup:
		l.t.Register(&s.grant, q.Session, q.Epoch, l.now(), lease.Key{Kind: lease.Name, Ino: q.Dir, Name: q.Name})
	case cfs.QueryReadDir:
		l.t.Register(&s.grant, q.Session, q.Epoch, l.now(), lease.Key{Kind: lease.List, Ino: q.Dir}, lease.Key{Kind: lease.Attr, Ino: q.Dir})
	default:
		l.t.Register(&s.grant, q.Session, q.Epoch, l.now(), lease.Key{Kind: lease.Attr, Ino: q.Ino})
	}
}

// read reads the answer, and who owns what is in it.
func (s *asked) read() error {
	s.owned = s.owned[:0]
	return s.l.n.state.view(func(v kv.View) (err error) {
		if s.a, err = fsm.Read(v, s.q); err != nil {
			return err
		}
		kind := lease.Exclusive
		switch s.q.Kind {
		case cfs.QueryLookup:
			if err := s.see(v, &s.a.Dir, lease.Exclusive); err != nil {
				return err
			}
			fallthrough
		case cfs.QueryGetAttr:
			if s.a.Attr.IsRegular() {
				kind = lease.Report
			}
		case cfs.QueryReadDir:
			for i := range s.a.Entries {
				e := &s.a.Entries[i]
				if e.Attr == nil || e.Attr.Owner == 0 || e.Attr.Owner == s.q.Session {
					continue
				}
				owner, err := fsm.Owner(v, e.Attr)
				if err != nil {
					return err
				}
				if e.Attr.Owner = owner; owner != 0 {
					e.Attr = nil
				}
			}
		}
		return s.see(v, &s.a.Attr, kind)
	})
}

// see looks whether another session owns an inode of the answer. Owners that are gone are
// not shown.
func (s *asked) see(v kv.View, a *cfs.Attr, kind lease.Kind) (err error) {
	if a.Ino == 0 || a.Owner == 0 || a.Owner == s.q.Session {
		return nil
	}
	if a.Owner, err = fsm.Owner(v, a); a.Owner != 0 {
		s.owned = append(s.owned, owned{a.Ino, a.Owner, kind})
	}
	return err
}

// reported completes the answer by what the owner has said of the one inode that is owned.
func (s *asked) reported() bool {
	r := &s.wait.Report
	if len(s.owned) != 1 || s.owned[0].kind != lease.Report || r.Ino != s.owned[0].ino {
		return false
	}
	s.a.Attr = *r
	return true
}

// seal settles whether the answer is leased. What became known by reading is registered now;
// where something has changed since, it is read again.
func (s *asked) seal() error {
	l := s.l
	l.mu.Lock()
	later := s.later()
	if len(later) > 0 {
		l.t.Register(&s.grant, s.q.Session, s.q.Epoch, l.now(), later...)
	}
	again := len(later) > 0 && l.t.Changes() != s.since && l.t.Standing(&s.grant)
	s.a.Leased = !again && s.standsLocked()
	l.mu.Unlock()
	if !again {
		return nil
	}
	if err := s.read(); err != nil {
		return err
	}
	s.only(later)
	l.mu.Lock()
	defer l.mu.Unlock()
	s.a.Leased = s.standsLocked()
	return nil
}

// only takes attributes out of the entries of a listing that are not among the registered: they
// were another's when it was read first.
func (s *asked) only(registered []lease.Key) {
	if len(s.a.Entries) == 0 {
		return
	}
	have := make(map[cfs.Ino]bool, len(registered))
	for _, k := range registered {
		have[k.Ino] = true
	}
	for i := range s.a.Entries {
		if e := &s.a.Entries[i]; e.Attr != nil && !have[e.Attr.Ino] {
			e.Attr = nil
		}
	}
}

func (s *asked) standsLocked() bool {
	if !s.l.over() && len(s.owned) == 0 && s.sure() && s.l.t.Tell(&s.grant) {
		return true
	}
	s.l.t.Withdraw(&s.grant)
	return false
}

// sure reports that the answer says something that a lease can be of.
func (s *asked) sure() bool {
	switch s.q.Kind {
	case cfs.QueryLookup:
		return s.a.Dir.Ino != 0 && (s.a.Kind == cfs.KindOK || s.a.Kind == cfs.NotFound)
	case cfs.QueryGetXattr:
		return s.a.Kind == cfs.KindOK || s.a.Kind == cfs.NoAttr
	}
	return s.a.Kind == cfs.KindOK
}

// later are the keys that are known once the answer is there.
func (s *asked) later() (keys []lease.Key) {
	if len(s.owned) > 0 || !s.sure() || !s.l.t.Standing(&s.grant) {
		return nil
	}
	switch {
	case s.q.Kind == cfs.QueryLookup && s.a.Attr.Ino != 0:
		return []lease.Key{{Kind: lease.Attr, Ino: s.a.Attr.Ino}}
	case s.q.Kind == cfs.QueryReadDir && s.q.WithAttrs:
		for i := range s.a.Entries {
			if a := s.a.Entries[i].Attr; a != nil {
				keys = append(keys, lease.Key{Kind: lease.Attr, Ino: a.Ino})
			}
		}
	}
	return keys
}
