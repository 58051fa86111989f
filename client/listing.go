package client

import (
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of what is known of whole directories: names of each, directories, and
// changes of one that have overtaken others on the wire.
const (
	maxListed   = 16 << 10
	maxListings = 64
	maxEarly    = 64
)

// listing is all names of a directory that this client has made, for as long as
// nobody else changes it: each of our changes says from which generation to which
// it took the directory, and a chain without a gap says that there was no other.
// It answers that a name does not exist, which is what the kernel asks before it
// creates one.
type listing struct {
	gen     uint64
	names   map[string]struct{}
	early   map[uint64]listingChange // by the generation before it
	expires time.Time                // as any answer: nobody tells us of a foreign change
}

type listingChange struct {
	gen     uint64 // after it
	name    string
	present bool
	expires time.Time
}

// made notes a directory that this client has made: it is empty, unless somebody
// has been seen to change it since. The time counts from when the cluster was
// asked: a reply may come late, and again.
func (c *cache) made(dir cfs.Ino, gen uint64, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, known := c.attrs.get(dir); known && a.attr.Gen > gen {
		return
	}
	if len(c.listings) >= maxListings {
		oldest, at := dir, time.Now().Add(c.ttl)
		for i, l := range c.listings {
			if l.expires.Before(at) {
				oldest, at = i, l.expires
			}
		}
		delete(c.listings, oldest)
	}
	c.listings[dir] = &listing{gen: gen, names: map[string]struct{}{}, early: map[uint64]listingChange{}, expires: asked.Add(c.ttl)}
}

// changed notes our change of a directory from generation was to gen: it has the
// name now, or not any more. asked is when the cluster was asked for it.
func (c *cache) changed(dir cfs.Ino, was, gen uint64, name string, present bool, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.listings[dir]
	if l == nil {
		return
	}
	if was < l.gen || len(l.early) >= maxEarly || len(l.names) >= maxListed {
		delete(c.listings, dir) // somebody else's change lies between, or it is too much
		return
	}
	l.early[was] = listingChange{gen, name, present, asked.Add(c.ttl)}
	for {
		next, ok := l.early[l.gen]
		if !ok {
			return
		}
		delete(l.early, l.gen)
		l.gen = next.gen
		if next.present {
			l.names[next.name] = struct{}{}
		} else {
			delete(l.names, next.name)
		}
		l.expires = next.expires
	}
}

// forgetListing drops what is known of a directory as a whole.
func (c *cache) forgetListing(dir cfs.Ino) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.listings, dir)
}

// absent reports that a directory certainly had no such name a moment ago.
func (c *cache) absent(dir cfs.Ino, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.listings[dir]
	if l == nil || time.Now().After(l.expires) {
		return false
	}
	for _, e := range l.early {
		if e.name == name {
			return false
		}
	}
	_, there := l.names[name]
	return !there
}
