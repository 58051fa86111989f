package nvme

import (
	"context"
	"slices"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// Replace is Put, but a record that is there under the key, with any group, epoch and
// length, is superseded: gets read the old one until the new one is durable, and then the
// new one. When it fails, or ctx ends first, the old one may be found after a
// restart, or the new one. Overloaded: the record was replaced some two thousand times.
//
// Each replacing raises the revision that a record carries wherever it is moved, and of two
// records of a key a start takes the one with the higher. So once Replace has returned nil no
// crash brings the old one back, also when the cleaner was moving that at the time,
// as long as the new one is there: when it is deleted, and a crash makes the log
// forget that, then it may be the old one that is back, and so it may when the key is put
// again between the two. Nor does a revision help when the device damages the header of
// the new one. A scrub finds what is not whole again.
func (l *Log) Replace(ctx context.Context, rec Record, crcs []byte, buf *iopath.Buf) error {
	return l.put(ctx, &put{rec: rec, crcs: crcs, buf: buf, replace: true})
}

// doomLocked sees to it that the put of a key under way leaves nothing, if there is one.
func (l *Log) doomLocked(k Key) bool {
	p := l.pending[k]
	if p == nil || p.deleted {
		return false
	}
	p.deleted = true
	l.doomed++
	return true
}

// dropDeletedLocked ends those puts that were deleted before they had a place, and
// returns the others. None of these may come to the device: a checkpoint
// under way would not know of it, see checkpointLocked.
func (l *Log) dropDeletedLocked(puts []*put) []*put {
	if l.doomed == 0 {
		return puts
	}
	return slices.DeleteFunc(puts, func(p *put) bool {
		if p.deleted {
			p.releaseBuf()
			l.finishLocked(p, nil)
		}
		return p.deleted
	})
}

// doubtfulLocked is the batches under way with records that may have been deleted meanwhile.
func (l *Log) doubtfulLocked() []*batch {
	batches := slices.Clone(l.moves)
	for i := 0; l.doomed > 0 && i < len(l.space.segs); i++ {
		for _, b := range l.space.segs[i].flow {
			if slices.ContainsFunc(b.puts, func(p *put) bool { return p.deleted }) {
				batches = append(batches, b)
			}
		}
	}
	return batches
}

// Verify reads a whole record into buf and compares each block with its checksum. It
// describes the record that it has read. NotFound when the log has no such record, Corrupt when its header or
// a block of it is damaged, IO when the device fails to read it, Invalid when buf is too small.
// Like a scrub, and unlike Get, it does not count against the device. buf's headroom is overwritten.
func (l *Log) Verify(ctx context.Context, key Key, buf *iopath.Buf) (Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, cfs.E(l.opOn("verify", key), contextKind(err), err)
		}
		rec, stale, err := l.verify(key, buf)
		switch {
		case stale && err != nil: // moved, replaced or deleted: what it was does not matter
		case err != nil:
			return Record{}, cfs.E(l.opOn("verify", key), cfs.KindOf(err), err)
		default:
			return rec, nil
		}
	}
}

// verify reads and compares a record where it lies; stale says that it does not any more.
func (l *Log) verify(key Key, buf *iopath.Buf) (rec Record, stale bool, err error) {
	l.mu.Lock()
	e, err := l.findLocked("verify", key)
	if err == nil && int(e.sizeBytes()) > len(buf.Bytes()) {
		err = cfs.Errorf("", cfs.Invalid, "%d bytes into a buffer of %d", e.sizeBytes(), len(buf.Bytes()))
	}
	if err != nil {
		l.mu.Unlock()
		return Record{}, false, err
	}
	l.space.segs[e.seg].readers++
	l.active++
	seg := l.space.segs[e.seg].header(&l.sb, e.seg)
	rec = l.index.record(&e)
	l.mu.Unlock()

	crcs, err := l.readBoth(key, &e, &seg, 0, rec.Len, buf)
	if err == nil && !payloadWhole(key, 0, buf.Bytes()[:rec.Len], crcs) {
		err = cfs.Errorf("device "+l.info.Path, cfs.Corrupt, "the payload at %d does not fit its checksums", l.segOffset(int(e.seg), e.payload))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	now, ok := l.index.get(key)
	stale = !ok || now.location() != e.location()
	switch {
	case err == nil:
		l.stats.ReadBytes += uint64(rec.Len)
	case stale:
	case cfs.KindOf(err) == cfs.Corrupt:
		l.stats.CRCFailures++
	default:
		l.stats.ReadErrors++
	}
	l.endReadLocked(int(e.seg))
	l.leaveLocked()
	return rec, stale, err
}
