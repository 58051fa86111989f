package client

import (
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// maxCached bounds the attributes, and the names, of one generation; two are kept.
const maxCached = 64 << 10

// cache remembers attributes and names for a time. An answer never replaces one
// of a later state: attributes carry the generation of their inode, names that of
// their directory, and both rise with every change.
type cache struct {
	ttl   time.Duration
	mu    sync.Mutex
	attrs twoGen[cfs.Ino, cachedAttr]
	names twoGen[nameKey, cachedName]

	listings map[cfs.Ino]*listing
}

type nameKey struct {
	dir  cfs.Ino
	name string
}

type cachedAttr struct {
	attr    cfs.Attr
	expires time.Time
}

type cachedName struct {
	ino     cfs.Ino // 0: there is no such name
	dirGen  uint64
	expires time.Time
}

// twoGen is a bounded map: when the young generation is full the old one is
// forgotten and the young one grows old; use moves an entry back to the young.
type twoGen[K comparable, V any] struct{ young, old map[K]V }

func (g *twoGen[K, V]) get(k K) (V, bool) {
	if v, ok := g.young[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.put(k, v)
	}
	return v, ok
}

func (g *twoGen[K, V]) put(k K, v V) {
	if g.young == nil || len(g.young) >= maxCached {
		g.old, g.young = g.young, make(map[K]V)
	}
	g.young[k] = v
}

func newCache(ttl time.Duration) *cache { return &cache{ttl: ttl, listings: map[cfs.Ino]*listing{}} }

// attr is an inode's attributes, if known and fresh.
func (c *cache) attr(i cfs.Ino) (cfs.Attr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.attrs.get(i)
	return a.attr, ok && time.Now().Before(a.expires)
}

// putAttr remembers attributes and returns the newest known.
func (c *cache) putAttr(a cfs.Attr) cfs.Attr {
	if a.Ino == 0 {
		return a
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.attrs.get(a.Ino); ok && old.attr.Gen > a.Gen {
		return old.attr
	}
	c.attrs.put(a.Ino, cachedAttr{a, time.Now().Add(c.ttl)})
	return a
}

// name is the inode behind a name (0: none), if known and fresh.
func (c *cache) name(dir cfs.Ino, name string) (cfs.Ino, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.names.get(nameKey{dir, name})
	return n.ino, ok && time.Now().Before(n.expires)
}

// putName remembers that at generation dirGen of the directory a name was of
// inode i (0: of none).
func (c *cache) putName(dir cfs.Ino, name string, i cfs.Ino, dirGen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := nameKey{dir, name}
	if old, ok := c.names.get(k); ok && old.dirGen > dirGen {
		return
	}
	c.names.put(k, cachedName{i, dirGen, time.Now().Add(c.ttl)})
}

// forgetAttr drops attributes that the cluster no longer has.
func (c *cache) forgetAttr(i cfs.Ino) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attrs.young, i)
	delete(c.attrs.old, i)
}

// forgetName makes a name uncertain that has changed at generation dirGen of the
// directory: answers from before it are not taken any more.
func (c *cache) forgetName(dir cfs.Ino, name string, dirGen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := nameKey{dir, name}
	if old, ok := c.names.get(k); ok && old.dirGen > dirGen {
		return
	}
	c.names.put(k, cachedName{dirGen: dirGen})
}
