package client

import "github.com/claudefs/claudefs/cfs"

// change is what a command of this client changes, from before it is sent until its
// outcome is known: none of that is answered from the cache meanwhile.
type change struct {
	c     *cache
	g     grant
	ops   []cfs.Op
	inos  []cfs.Ino
	names []changedName
	lists []*listing // of dirs
	dirs  []cfs.Ino
	blind bool
}

// changedName is a name that changes. ino is what was behind it, where that is known for certain.
type changedName struct {
	nameKey
	ino   cfs.Ino
	known bool
	alone bool   // no other command changes it at the same time
	mark  uint64 // slot.changed at the beginning
}

// begin marks what ops change. g is of now.
func (c *cache) begin(g grant, ops []cfs.Op, behind func(dir cfs.Ino, name string) (cfs.Ino, bool)) *change {
	ch := &change{c: c, g: g, ops: ops}
	for i := range ops {
		op := &ops[i]
		switch op.Kind {
		case cfs.OpCreate:
			ch.entry(op.Dir, op.Name, nil)
		case cfs.OpLink:
			ch.entry(op.Dir, op.Name, nil)
			ch.ino(op.Ino)
		case cfs.OpUnlink, cfs.OpRmdir:
			ch.entry(op.Dir, op.Name, behind)
			ch.ino(op.Ino)
		case cfs.OpRename:
			ch.entry(op.Dir, op.Name, behind)
			ch.entry(op.NewDir, op.NewName, behind)
			ch.ino(op.Ino)
		default:
			ch.ino(op.Ino)
		}
	}
	if ch.blind {
		c.blind.Add(1)
	}
	return ch
}

func (ch *change) ino(i cfs.Ino) {
	if i == 0 {
		return
	}
	for _, have := range ch.inos {
		if have == i {
			return
		}
	}
	ch.inos = append(ch.inos, i)
	s, sl := ch.c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.changing++
}

// entry marks a name, its directory, and what is behind it, if behind is to say that.
func (ch *change) entry(dir cfs.Ino, name string, behind func(cfs.Ino, string) (cfs.Ino, bool)) {
	n := changedName{nameKey: nameKey{dir, name}}
	if behind != nil {
		if n.ino, n.known = behind(dir, name); n.known {
			ch.ino(n.ino)
		} else {
			ch.blind = true
		}
	}
	ch.ino(dir)
	s, sl := ch.c.nameAt(dir, name)
	s.mu.Lock()
	n.alone = sl.changing == 0
	n.mark = sl.changed
	sl.changing++
	s.mu.Unlock()
	ch.names = append(ch.names, n)
	for _, d := range ch.dirs {
		if d == dir {
			return
		}
	}
	s, sl = ch.c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.changing++
	l := s.listings[dir]
	if l != nil {
		l.changing++
	}
	ch.dirs, ch.lists = append(ch.dirs, dir), append(ch.lists, l)
}

// end ends the change with what it has made so: leased says that the session has the leases of it.
// Without results nothing has changed. What has changed and is not known any more
// is forgotten; lost says that this is more than can be told.
func (ch *change) end(results []cfs.Result, leased bool) (lost bool) {
	c := ch.c
	g := grant{asked: ch.g.asked}
	if leased {
		g.era = ch.g.era
	}
	lost = ch.blind
	alone := ch.alone()
	for i := range results {
		op, r := &ch.ops[i], &results[i]
		for _, a := range [...]*cfs.Attr{&r.Attr, &r.Dir, &r.NewDir} {
			if a.Ino != 0 {
				c.changedAttr(a, g, ch.g.era)
			}
		}
		switch op.Kind {
		case cfs.OpCreate, cfs.OpLink:
			ch.entryNow(op.Dir, op.Name, r.Attr.Ino, r.Attr.Mode, r.Dir.Gen, g)
		case cfs.OpUnlink, cfs.OpRmdir:
			ch.entryNow(op.Dir, op.Name, 0, 0, r.Dir.Gen, g)
			lost = false
		case cfs.OpRename:
			lost = !ch.names[0].known || op.Flags == cfs.RenameExchange && !ch.names[1].known
			ch.renamed(op, r, g, alone)
		}
	}
	ch.endRest(len(results) > 0)
	if ch.blind {
		c.blind.Add(-1)
	}
	return lost && len(results) > 0
}

// empty reports that the command changes nothing that is cached.
func (ch *change) empty() bool { return len(ch.inos) == 0 && len(ch.names) == 0 && !ch.blind }

// alone reports that what was behind the names is known, and that no other command has changed them meanwhile.
func (ch *change) alone() (alone bool) {
	alone = true
	for _, n := range ch.names {
		s, sl := ch.c.nameAt(n.dir, n.name)
		s.mu.Lock()
		alone = alone && n.known && n.alone && sl.changing == 1 && sl.changed == n.mark
		s.mu.Unlock()
	}
	return alone
}

// endRest ends the marks.
func (ch *change) endRest(changed bool) {
	c := ch.c
	seq := c.seq.Add(1)
	end := func(sl *slot) {
		sl.changing--
		if changed {
			sl.changed = max(sl.changed, seq)
		}
	}
	for _, n := range ch.names {
		s, sl := c.nameAt(n.dir, n.name)
		s.mu.Lock()
		end(sl)
		s.mu.Unlock()
	}
	for _, i := range ch.inos {
		s, sl := c.attrAt(i)
		s.mu.Lock()
		end(sl)
		s.mu.Unlock()
	}
	for i, dir := range ch.dirs {
		s, sl := c.listAt(dir)
		s.mu.Lock()
		end(sl)
		if l := ch.lists[i]; l != nil {
			if l.changing--; l.changing == 0 && s.listings[dir] == l {
				l.pruneLocked(c)
			}
		}
		s.mu.Unlock()
	}
}

// doubt begins (by 1) or ends (by -1) the time in which it is not known whether a change will take effect.
func (ch *change) doubt(by int) {
	for _, i := range ch.inos {
		s, sl := ch.c.attrAt(i)
		s.mu.Lock()
		sl.doubts += by
		s.mu.Unlock()
	}
	ch.c.doubts.Add(int64(by))
}

// void ends a change of which it is not known whether it has taken effect, and that never will from now on.
func (ch *change) void() {
	c := ch.c
	for _, i := range ch.inos {
		c.forgetAttr(i)
	}
	for _, n := range ch.names {
		c.forgetName(n.dir, n.name)
	}
	for _, d := range ch.dirs {
		c.dropListing(d)
	}
	ch.endRest(true)
	if ch.blind {
		c.blind.Add(-1)
	}
}

// changedAttr keeps the attributes that a command of ours has left. The lease of before stays
// through changes of our own.
func (c *cache) changedAttr(a *cfs.Attr, g grant, era uint64) {
	s, sl := c.attrAt(a.Ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.attrs.get(a.Ino, maxCached)
	if had && old.attr.Gen > a.Gen {
		return
	}
	if !sl.covers(g, era) {
		if !had || !sl.covers(old.grant, era) {
			s.attrs.drop(a.Ino)
			return
		}
		g = old.grant
	}
	s.attrs.put(a.Ino, cachedAttr{*a, g}, maxCached)
}

// entryNow keeps what is behind a name after a command of ours.
func (ch *change) entryNow(dir cfs.Ino, name string, i cfs.Ino, mode uint32, gen uint64, g grant) {
	c := ch.c
	s, sl := c.nameAt(dir, name)
	s.mu.Lock()
	k := nameKey{dir, name}
	old, had := s.names.get(k, maxCached)
	switch {
	case had && old.dirGen > gen:
	case sl.covers(g, ch.g.era):
		s.names.put(k, cachedName{i, gen, g}, maxCached)
	case had && sl.covers(old.grant, ch.g.era):
		s.names.put(k, cachedName{i, gen, old.grant}, maxCached)
	default:
		s.names.drop(k)
	}
	s.mu.Unlock()
	for at, d := range ch.dirs {
		l := ch.lists[at]
		if d != dir || l == nil {
			continue
		}
		s, _ := c.listAt(dir)
		s.mu.Lock()
		if s.listings[dir] == l {
			l.setLocked(c, name, listed{i, mode & cfs.ModeType, gen})
			if len(l.names) > maxListed+maxCommandsListed {
				c.dropListingLocked(s, dir)
			}
		}
		s.mu.Unlock()
	}
}

// maxCommandsListed is how many names that have gone a listing may remember besides.
const maxCommandsListed = 1024

// renamed keeps what a rename, which is alone in its command, has left. The reply does not say what has moved: if that is not
// known for certain the names are forgotten.
func (ch *change) renamed(op *cfs.Op, r *cfs.Result, g grant, certain bool) {
	c := ch.c
	from, to := ch.names[0], ch.names[1]
	toGen := r.Dir.Gen
	if r.NewDir.Ino != 0 {
		toGen = r.NewDir.Gen
	}
	c.forgetAttr(from.ino) // its change time is new
	if op.Dir != op.NewDir {
		c.dropListing(from.ino) // its parent, if it is a directory
		c.dropListing(to.ino)
	}
	if op.Flags == cfs.RenameExchange || r.Attr.Ino == 0 {
		c.forgetAttr(to.ino)
	}
	mode, ok := c.modeOf(ch, from.nameKey)
	if !certain || len(ch.ops) != 1 || op.Flags == cfs.RenameExchange || from.ino == 0 || from.ino == to.ino || !ok {
		for _, n := range [...]changedName{from, to} {
			c.forgetName(n.dir, n.name)
			c.dropListing(n.dir)
		}
		return
	}
	ch.entryNow(from.dir, from.name, 0, 0, r.Dir.Gen, g)
	ch.entryNow(to.dir, to.name, from.ino, mode, toGen, g)
}

// modeOf is the type of what is behind a name, as far as a listing needs it.
func (c *cache) modeOf(ch *change, k nameKey) (uint32, bool) {
	for i, d := range ch.dirs {
		if l := ch.lists[i]; d == k.dir && l != nil {
			s, _ := c.listAt(d)
			s.mu.Lock()
			e, ok := l.names[k.name]
			s.mu.Unlock()
			return e.mode, ok && e.ino != 0
		}
	}
	for _, l := range ch.lists {
		if l != nil {
			return 0, false // the other directory's listing needs it
		}
	}
	return 0, true
}

// forgetName drops what is known of a name.
func (c *cache) forgetName(dir cfs.Ino, name string) {
	s, _ := c.nameAt(dir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names.drop(nameKey{dir, name})
}
