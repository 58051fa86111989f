package client

import (
	"context"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// maxRecopy is how often a copy reads its source's extents again because a stripe that
// they name has been freed.
const maxRecopy = 5

// CopyRange copies up to n bytes from srcOff of the file to dstOff of dst by reference:
// both then name the same stripes. What is written to the source is committed first;
// its holes, and what is allocated and not written, become holes. It is short at the
// source's end, and when it fails after a part has been copied. Ranges of one file that
// overlap are Invalid. mask is what the copy does to dst besides: SetKillPriv or
// nothing. InlineFull says that small files cannot be copied so for now:
// read and write instead.
func (f *File) CopyRange(ctx context.Context, dst *File, srcOff, dstOff, n uint64, mask cfs.SetMask) (uint64, error) {
	if err := dst.n.failedSince(&dst.told); err != nil {
		return 0, err
	}
	if dstOff > cfs.MaxFileSize || n > 0 && dstOff == cfs.MaxFileSize {
		return 0, cfs.E("copy range", cfs.TooLarge, nil)
	}
	n = min(n, cfs.MaxFileSize-dstOff)
	if f.n != dst.n { // else settled does it
		if err := f.n.flush(ctx); err != nil {
			return 0, err
		}
	}
	var done uint64
	err := dst.n.settled(ctx, func() (err error) {
		if err := f.n.failedSince(&f.told); err != nil {
			return err // the cluster does not have what was written to the source
		}
		done, err = f.copyRange(ctx, dst, srcOff, dstOff, n, mask)
		return err
	})
	f.c.stats.bytesCopied.Add(done)
	if done > 0 {
		err = nil // what stopped it meets the next copy
	}
	return done, err
}

// copyRange copies in as many commands as it takes.
func (f *File) copyRange(ctx context.Context, dst *File, srcOff, dstOff, n uint64, mask cfs.SetMask) (done uint64, err error) {
	defer dst.n.dropExtents()
	for first, tries := true, 0; done < n; first = false {
		at := srcOff + done
		a, _, err := f.c.askExtents(ctx, f.n.ino, at, true)
		if err != nil {
			return done, err
		}
		if at >= a.Attr.Size {
			return done, nil
		}
		if first { // what the copy itself adds to a file is not copied
			n = min(n, a.Attr.Size-at)
			if f.n == dst.n && srcOff < dstOff+n && dstOff < srcOff+n {
				return 0, cfs.E("copy range", cfs.Invalid, nil)
			}
		}
		took, err := f.copyRows(ctx, dst, a, at, at+min(n-done, a.Attr.Size-at), dstOff+done, mask)
		done += took
		switch {
		case err == nil:
			tries = 0
		case copyAgain(err) && tries < maxRecopy:
			tries++
		default:
			return done, err
		}
	}
	return done, nil
}

// copyAgain reports that a copy may succeed from new extents, or in the new session: a
// stripe or group that an extent names may have been freed, or the session has ended.
func copyAgain(err error) bool {
	switch cfs.KindOf(err) {
	case cfs.BelowFloor, cfs.StaleEpoch, cfs.Invalid, cfs.NoSession:
		return true
	}
	return false
}

// copyRows commits what an answer says of [at, end) of the source at to of dst, or the
// part of it that one command carries, and returns how many bytes that was.
func (f *File) copyRows(ctx context.Context, dst *File, a *cfs.Answer, at, end, to uint64, mask cfs.SetMask) (uint64, error) {
	op := cfs.Op{Kind: cfs.OpWrite, Ino: dst.n.ino, Mask: mask, Attr: cfs.Attr{MtimeNS: time.Now().UnixNano()}}
	pos, inline := at, uint64(0)
	rows := a.Extents
	for ; len(rows) > 0 && rows[0].Off < end; rows = rows[1:] {
		if rows[0].End() <= pos {
			continue
		}
		x := rows[0].Slice(max(rows[0].Off, pos), min(rows[0].End(), end))
		if x.Kind == cfs.ExtentUnwritten {
			continue
		}
		if x.Kind == cfs.ExtentInline {
			inline += x.Len
		}
		if len(op.Extents)+2 > maxBatchExtents || len(op.Extents) > 0 && inline > maxBatchInline {
			end = x.Off
			break
		}
		op.Extents = appendHole(op.Extents, pos, x.Off, at, to)
		pos = x.End()
		x.Off += to - at // wraps around where the copy goes towards the start
		op.Extents = append(op.Extents, x)
	}
	if a.More && len(rows) == 0 { // what comes after the last row is not known
		end = min(end, a.Extents[len(a.Extents)-1].End())
	}
	op.Extents = appendHole(op.Extents, pos, end, at, to)
	op.Attr.Size = to + (end - at)
	if _, err := dst.n.commitOp(ctx, f.c.session.Load(), op); err != nil {
		return 0, err
	}
	return end - at, nil
}

// appendHole adds the hole [pos, end) of a source, of which at goes to to.
func appendHole(xs []cfs.Extent, pos, end, at, to uint64) []cfs.Extent {
	if pos >= end {
		return xs
	}
	return append(xs, cfs.Extent{Off: to + (pos - at), Len: end - pos, Kind: cfs.ExtentHole})
}
