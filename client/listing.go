package client

import (
	"sort"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of what is known of whole directories.
const (
	maxListed    = 16 << 10 // names of one
	maxListings  = 16       // of each shard of the cache
	maxListedAll = 1 << 20  // names of all
)

// listing is all names of a directory: of one that this client has made and owns, or one that it has
// read to the end under a lease of the list.
type listing struct {
	grant
	parent cfs.Ino
	names  map[string]listed
	// Commands of our own that change it and are on their way: while there are any, what has gone is
	// remembered, so that a reply that was overtaken does not bring it back.
	changing int
}

// listed is what is behind a name; ino 0: nothing any more.
type listed struct {
	ino  cfs.Ino
	mode uint32
	gen  uint64 // of the directory, at the change
}

// keepListing keeps all names of dir. Of a directory that is owned, under whatever grant.
func (c *cache) keepListing(dir, parent cfs.Ino, names map[string]listed, g grant) {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(names) > maxListed || c.names.Load()+int64(len(names)) > maxListedAll || sl.recalled > g.asked || sl.changed > g.asked || sl.changing > 0 {
		return
	}
	if s.listings == nil {
		s.listings = map[cfs.Ino]*listing{}
	}
	c.dropListingLocked(s, dir)
	for victim := range s.listings {
		if len(s.listings) < maxListings {
			break
		}
		c.dropListingLocked(s, victim)
	}
	s.listings[dir] = &listing{grant: g, parent: parent, names: names}
	c.names.Add(int64(len(names)))
}

func (c *cache) dropListingLocked(s *cacheShard, dir cfs.Ino) {
	if l := s.listings[dir]; l != nil {
		c.names.Add(-int64(len(l.names)))
		delete(s.listings, dir)
	}
}

// dropListing forgets what is known of a directory as a whole.
func (c *cache) dropListing(dir cfs.Ino) {
	s, _ := c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.dropListingLocked(s, dir)
}

// recallList gives the lease of a directory's names back.
func (c *cache) recallList(dir cfs.Ino) {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.recalled = c.seq.Add(1)
	c.dropListingLocked(s, dir)
}

// listed is the inode that a listing has behind a name (0: none), if there is one
// that is leased in era, or of a directory that is owned.
func (c *cache) listed(dir cfs.Ino, name string, era uint64, owned bool) (i cfs.Ino, ok bool) {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.listings[dir]
	if l == nil || !owned && !sl.covers(l.grant, era) {
		return 0, false
	}
	return l.names[name].ino, true
}

// entries is a whole listing in the order of names, on the same terms.
func (c *cache) entries(dir cfs.Ino, era uint64, owned bool) (parent cfs.Ino, all []cfs.Dirent, ok bool) {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	l := s.listings[dir]
	if l == nil || !owned && (!sl.covers(l.grant, era) || sl.changing > 0) {
		s.mu.Unlock()
		return 0, nil, false
	}
	parent = l.parent
	all = make([]cfs.Dirent, 0, len(l.names))
	for name, e := range l.names {
		if e.ino != 0 {
			all = append(all, cfs.Dirent{Name: name, Ino: e.ino, Mode: e.mode})
		}
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return parent, all, true
}

// listCurrent reports that nothing of a directory's list has been recalled or changed since g.
func (c *cache) listCurrent(dir cfs.Ino, g grant, era uint64) bool {
	s, sl := c.listAt(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.era == era && sl.fresh(g)
}

// setLocked notes a change of our own; a later one of the same name stays.
func (l *listing) setLocked(c *cache, name string, e listed) {
	old, had := l.names[name]
	if had && old.gen > e.gen {
		return
	}
	if !had {
		c.names.Add(1)
	}
	l.names[name] = e
}

// pruneLocked forgets what has gone.
func (l *listing) pruneLocked(c *cache) {
	for name, e := range l.names {
		if e.ino == 0 {
			delete(l.names, name)
			c.names.Add(-1)
		}
	}
}
