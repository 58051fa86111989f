package nvme

// cacheEntryBytes is what one vector costs beside its own bytes: the slice, the
// map's share and the allocator's rounding.
const cacheEntryBytes = 64

// crcCache holds checksum vectors by the place of their records, within a
// bound. It has two generations: when the young one is half of the bound it
// becomes the old one, and what was old and not asked for since is dropped.
// Guarded by Log.mu.
type crcCache struct {
	young, old map[uint64][]byte
	youngBytes int
	boundBytes int
}

func newCRCCache(boundBytes int) *crcCache {
	return &crcCache{boundBytes: boundBytes, young: make(map[uint64][]byte)}
}

// cacheKey names a record by where it lies; unique among live records.
func cacheKey(seg, payload uint32) uint64 { return uint64(seg)<<16 | uint64(payload) }

func (c *crcCache) get(at uint64) []byte {
	if v, ok := c.young[at]; ok {
		return v
	}
	v, ok := c.old[at]
	if ok {
		delete(c.old, at)
		c.put(at, v)
	}
	return v
}

// put keeps crcs, which nobody changes any more.
func (c *crcCache) put(at uint64, crcs []byte) {
	if _, there := c.young[at]; there {
		return
	}
	size := len(crcs) + cacheEntryBytes
	if c.youngBytes+size > c.boundBytes/2 {
		c.old, c.young, c.youngBytes = c.young, make(map[uint64][]byte), 0
		if size > c.boundBytes/2 {
			return
		}
	}
	c.young[at] = crcs
	c.youngBytes += size
}

func (c *crcCache) delete(at uint64) {
	if v, ok := c.young[at]; ok {
		c.youngBytes -= len(v) + cacheEntryBytes
		delete(c.young, at)
	}
	delete(c.old, at)
}
