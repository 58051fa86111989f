package client

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds of the cache, of each shard and generation; two generations are kept.
const (
	cacheShards = 64
	shardSlots  = 64
	maxCached   = 64 << 10 / cacheShards // attributes, and names
	maxValues   = 64                     // symlink targets and extended attributes
	// maxValueBytes bounds the bytes of a value that is kept.
	maxValueBytes = 1 << 10
)

// cache is what this client knows under leases: attributes, names, values and
// listings. Each entry carries the grant that it came with, and is an answer only
// under that era's leases, if its key has not been recalled since it was asked for.
//
// Keys share slots, which remember when something of theirs was recalled or changed last, in
// numbers of one sequence: a recall needs to find nothing, and an answer that it has overtaken is
// recognised, since it was asked for before. That two keys share a slot costs a question.
//
// While a command of our own is on its way nobody recalls our leases, and others may see its
// effect before we do: what it changes is no answer until it has ended.
type cache struct {
	seq   atomic.Uint64 // of recalls and changes
	blind atomic.Int64  // commands on their way of which it is not known which inodes they change
	seed  maphash.Seed
	names atomic.Int64 // in listings
	// doubts are the commands that were given up and may yet be carried out.
	doubts atomic.Int64
	shard  [cacheShards]cacheShard
}

type cacheShard struct {
	mu        sync.Mutex // of all that follows; no other lock is taken under it
	attrs     twoGen[cfs.Ino, cachedAttr]
	names     twoGen[nameKey, cachedName]
	values    twoGen[valueKey, cachedValue]
	listings  map[cfs.Ino]*listing
	attrSlots [shardSlots]slot
	nameSlots [shardSlots]slot
	listSlots [shardSlots]slot
}

// slot is what keys that share it have met, as numbers of cache.seq.
type slot struct {
	recalled uint64 // last, by the cluster
	changed  uint64 // last, by a command of this client that has ended
	changing int    // commands on their way
	doubts   int    // of those, that were given up
	disowned uint64 // when an exclusive lease was last given up
}

// grant is what was so when something was asked for: the era of the leases, and the
// sequence of recalls. Era 0 is no lease.
type grant struct{ era, asked uint64 }

// covers reports that g is in force: of this era, and nothing was recalled since.
func (s *slot) covers(g grant, era uint64) bool {
	return g.era == era && era != 0 && s.recalled <= g.asked
}

// fresh reports that what was asked for at g is no older than any change of ours.
func (s *slot) fresh(g grant) bool {
	return g.era != 0 && s.recalled <= g.asked && s.changed <= g.asked && s.changing == 0
}

type nameKey struct {
	dir  cfs.Ino
	name string
}

type cachedAttr struct {
	attr cfs.Attr
	grant
}

type cachedName struct {
	ino    cfs.Ino // 0: there is no such name
	dirGen uint64
	grant
}

// valueKey is an attribute of an inode; kind is the query that asks for it.
type valueKey struct {
	ino  cfs.Ino
	kind cfs.QueryKind
	name string
}

type cachedValue struct {
	kind  cfs.Kind // KindOK, or NoAttr
	value []byte
	names []string
	grant
}

// twoGen is a bounded map: when the young generation is full the old one is
// forgotten and the young one grows old; use moves an entry back to the young.
type twoGen[K comparable, V any] struct{ young, old map[K]V }

func (g *twoGen[K, V]) get(k K, bound int) (V, bool) {
	if v, ok := g.young[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.put(k, v, bound)
	}
	return v, ok
}

func (g *twoGen[K, V]) put(k K, v V, bound int) {
	if g.young == nil || len(g.young) >= bound {
		g.old, g.young = g.young, make(map[K]V)
	}
	g.young[k] = v
}

func (g *twoGen[K, V]) drop(k K) {
	delete(g.young, k)
	delete(g.old, k)
}

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

// mix spreads inode numbers, which are handed out in sequence.
func mix(i cfs.Ino) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 }

func (c *cache) at(h uint64) (*cacheShard, int) {
	return &c.shard[h>>58%cacheShards], int(h >> 52 % shardSlots)
}

func (c *cache) attrAt(i cfs.Ino) (*cacheShard, *slot) {
	s, n := c.at(mix(i))
	return s, &s.attrSlots[n]
}

func (c *cache) listAt(dir cfs.Ino) (*cacheShard, *slot) {
	s, n := c.at(mix(dir))
	return s, &s.listSlots[n]
}

func (c *cache) nameAt(dir cfs.Ino, name string) (*cacheShard, *slot) {
	s, n := c.at(maphash.String(c.seed, name) ^ mix(dir))
	return s, &s.nameSlots[n]
}

// attr is an inode's attributes, if leased in era.
func (c *cache) attr(i cfs.Ino, era uint64) (cfs.Attr, bool) {
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.attrs.get(i, maxCached)
	return a.attr, ok && sl.changing == 0 && sl.covers(a.grant, era) && c.blind.Load() == 0
}

// putAttr keeps attributes that an answer has brought, asked for at g. Later ones stay.
func (c *cache) putAttr(a *cfs.Attr, g grant) {
	s, sl := c.attrAt(a.Ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Ino == 0 || !sl.fresh(g) || c.blind.Load() != 0 {
		return
	}
	if old, ok := s.attrs.get(a.Ino, maxCached); ok && old.attr.Gen > a.Gen {
		return
	}
	s.attrs.put(a.Ino, cachedAttr{*a, g}, maxCached)
}

// name is the inode behind a name (0: none), if leased in era. changing says that a command
// of our own is on its way there.
func (c *cache) name(dir cfs.Ino, name string, era uint64) (i cfs.Ino, ok, changing bool) {
	s, sl := c.nameAt(dir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.names.get(nameKey{dir, name}, maxCached)
	changing = sl.changing != 0
	return n.ino, ok && !changing && sl.covers(n.grant, era), changing
}

// putName keeps what an answer has told of a name: inode i (0: none) at generation dirGen of the directory.
func (c *cache) putName(dir cfs.Ino, name string, i cfs.Ino, dirGen uint64, g grant) {
	s, sl := c.nameAt(dir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !sl.fresh(g) {
		return
	}
	k := nameKey{dir, name}
	if old, ok := s.names.get(k, maxCached); ok && old.dirGen > dirGen {
		return
	}
	s.names.put(k, cachedName{i, dirGen, g}, maxCached)
}

// value is a target or extended attribute, if the inode is leased in era.
func (c *cache) value(k valueKey, era uint64) (cachedValue, bool) {
	s, sl := c.attrAt(k.ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values.get(k, maxValues)
	return v, ok && sl.fresh(v.grant) && v.era == era && c.blind.Load() == 0
}

func (c *cache) putValue(k valueKey, v cachedValue) {
	size := len(v.value)
	for _, n := range v.names {
		size += len(n)
	}
	s, sl := c.attrAt(k.ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if size <= maxValueBytes && sl.fresh(v.grant) && c.blind.Load() == 0 {
		s.values.put(k, v, maxValues)
	}
}

// forgetAttr drops attributes that the cluster no longer has.
func (c *cache) forgetAttr(i cfs.Ino) {
	s, _ := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attrs.drop(i)
}

// recallAttr gives the lease of an inode's attributes back; answers that are on their way are not kept.
func (c *cache) recallAttr(i cfs.Ino) {
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.recalled = c.seq.Add(1)
	s.attrs.drop(i)
}

// recallName gives the lease of a name back.
func (c *cache) recallName(dir cfs.Ino, name string) {
	s, sl := c.nameAt(dir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.recalled = c.seq.Add(1)
	s.names.drop(nameKey{dir, name})
}

// overtaken reports that the attributes of an inode have been recalled since g, or, unless it is new since then, that
// its exclusive lease has been given up.
func (c *cache) overtaken(i cfs.Ino, g grant, isNew bool) bool {
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	return sl.recalled > g.asked || !isNew && sl.disowned > g.asked
}

// disowned takes note that an exclusive lease has been given up.
func (c *cache) disowned(i cfs.Ino) {
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.disowned = c.seq.Add(1)
}

// inDoubt reports that a command that was given up may yet change an inode: what is in memory of it is no answer.
func (c *cache) inDoubt(i cfs.Ino) bool {
	if c.doubts.Load() == 0 {
		return false
	}
	s, sl := c.attrAt(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	return sl.doubts > 0
}
