package nvme

import (
	"math"
	"slices"
)

// How the lists of an index grow, split, join and shrink.

// insertGrowing puts v at place i of s, which grows by a quarter when it is
// full, but not beyond most, which must not be reached yet.
func insertGrowing[T any](s []T, i int, v T, most int) []T {
	if len(s) < cap(s) {
		s = s[:len(s)+1]
		copy(s[i+1:], s[i:])
		s[i] = v
		return s
	}
	out := slices.Grow([]T(nil), min(len(s)+1+len(s)/4, most))[:len(s)+1]
	copy(out, s[:i])
	out[i] = v
	copy(out[i+1:], s[i:])
	return out
}

// fitted is s in memory that it fills. Its own memory is used further when a third
// of it or less is empty.
func fitted[T any](s []T) []T {
	if cap(s) <= len(s)+len(s)/2 {
		return s
	}
	return append([]T(nil), s...)
}

// setRecs gives a leaf other records.
func (x *index) setRecs(l *leaf, recs []packed) {
	x.recRoom += cap(recs) - cap(l.recs)
	l.recs = recs
}

// setLeaves gives a branch other leaves.
func (x *index) setLeaves(b *branch, leaves []leaf) {
	x.leafRoom += cap(leaves) - cap(b.leaves)
	b.leaves = leaves
}

// insert puts a record at place ri of a leaf, which splits when it is full.
func (x *index) insert(bi, li, ri int, p packed) {
	l := &x.branches[bi].leaves[li]
	n := len(l.recs)
	if n < maxLeaf {
		x.setRecs(l, insertGrowing(l.recs, ri, p, maxLeaf))
		return
	}
	upper := l.counter >> 32 << 32
	switch {
	case ri == n && p.counter() > l.recs[n-1].counter():
		x.insertLeaf(bi, li+1, leaf{l.session, upper | uint64(p.counter()), nil}, p)
		return
	case ri == 0 && p.counter() < l.recs[0].counter():
		before := leaf{l.session, l.counter, nil}
		l.counter = upper | uint64(l.recs[0].counter())
		x.insertLeaf(bi, li, before, p)
		return
	}
	// In the middle; but records that come nearly in order are split where they
	// come, so that the left leaf stays full.
	at := n / 2
	if ri > n-n/8 {
		at = ri - 1
	}
	at = splitPoint(l.recs, at)
	right := append([]packed(nil), l.recs[at:]...)
	first := right[0].counter()
	if p.counter() >= first {
		right = insertGrowing(right, ri-at, p, maxLeaf)
		x.setRecs(l, fitted(l.recs[:at]))
	} else {
		x.setRecs(l, insertGrowing(fitted(l.recs[:at]), ri, p, maxLeaf))
	}
	x.recRoom += cap(right)
	x.addLeaf(bi, li+1, leaf{l.session, upper | uint64(first), right})
}

// splitPoint is the place nearest to at where a full leaf can be split: the shards of a
// stripe stay together. There is one, for if all records were of one
// stripe, none of its shards would be missing.
func splitPoint(recs []packed, at int) int {
	for step := 0; step < len(recs); step++ {
		for _, i := range [2]int{at - step, at + step} {
			if i > 0 && i < len(recs) && recs[i-1].counter() != recs[i].counter() {
				return i
			}
		}
	}
	panic("a leaf of one stripe is split")
}

// insertLeaf adds a leaf with one record.
func (x *index) insertLeaf(bi, li int, l leaf, p packed) {
	l.recs = insertGrowing(l.recs, 0, p, maxLeaf)
	x.recRoom += cap(l.recs)
	x.addLeaf(bi, li, l)
}

// addLeaf puts a leaf at place li of a branch, which splits when it is full.
func (x *index) addLeaf(bi, li int, l leaf) {
	b := &x.branches[bi]
	if len(b.leaves) < maxBranch {
		x.setLeaves(b, insertGrowing(b.leaves, li, l, maxBranch))
		return
	}
	at := maxBranch / 2
	if li == maxBranch {
		at = li // leaves that come in order fill their branches
	}
	right := append([]leaf(nil), b.leaves[at:]...)
	clear(b.leaves[at:])
	if li > at || at == maxBranch {
		right = insertGrowing(right, li-at, l, maxBranch)
		x.setLeaves(b, fitted(b.leaves[:at]))
	} else {
		x.setLeaves(b, insertGrowing(fitted(b.leaves[:at]), li, l, maxBranch))
	}
	x.leafRoom += cap(right)
	x.branches = insertGrowing(x.branches, bi+1, branch{right[0].session, right[0].counter, right}, math.MaxInt)
}

const (
	// A leaf or branch with less than a quarter joins a neighbour, if both fill
	// three quarters at most: so neither splits again soon.
	smallLeaf, joinedLeaf     = maxLeaf / 4, maxLeaf / 4 * 3
	smallBranch, joinedBranch = maxBranch / 4, maxBranch / 4 * 3
)

// shrinkLeaf is called after a record has left a leaf.
func (x *index) shrinkLeaf(bi, li int) {
	b := &x.branches[bi]
	l := &b.leaves[li]
	switch n := len(l.recs); {
	case n == 0:
		x.recRoom -= cap(l.recs)
		x.removeLeaf(bi, li)
	case n < smallLeaf && x.joinLeaves(bi, li), n < smallLeaf && x.joinLeaves(bi, li-1):
	default:
		x.setRecs(l, fitted(l.recs))
	}
}

// joinLeaves moves what leaf li+1 has into leaf li, if they are of one session and small enough.
func (x *index) joinLeaves(bi, li int) bool {
	b := &x.branches[bi]
	if li < 0 || li+1 >= len(b.leaves) {
		return false
	}
	l, r := &b.leaves[li], &b.leaves[li+1]
	if !l.covers(r.session, r.counter) || len(l.recs)+len(r.recs) > joinedLeaf {
		return false
	}
	x.setRecs(l, append(slices.Grow([]packed(nil), len(l.recs)+len(r.recs)), l.recs...))
	l.recs = append(l.recs, r.recs...)
	x.recRoom -= cap(r.recs)
	x.removeLeaf(bi, li+1)
	return true
}

// removeLeaf takes a leaf, whose records are counted out already, out of its branch.
func (x *index) removeLeaf(bi, li int) {
	b := &x.branches[bi]
	b.leaves = slices.Delete(b.leaves, li, li+1)
	switch n := len(b.leaves); {
	case n == 0 && len(x.branches) > 1:
		x.removeBranch(bi)
	case n < smallBranch && x.joinBranches(bi), n < smallBranch && x.joinBranches(bi-1):
	default:
		x.setLeaves(b, fitted(b.leaves))
	}
}

// joinBranches moves what branch bi+1 has into branch bi, if they are small enough.
func (x *index) joinBranches(bi int) bool {
	if bi < 0 || bi+1 >= len(x.branches) {
		return false
	}
	b, r := &x.branches[bi], &x.branches[bi+1]
	if len(b.leaves)+len(r.leaves) > joinedBranch {
		return false
	}
	x.setLeaves(b, append(slices.Grow([]leaf(nil), len(b.leaves)+len(r.leaves)), b.leaves...))
	b.leaves = append(b.leaves, r.leaves...)
	x.removeBranch(bi + 1)
	return true
}

// removeBranch takes a branch, whose leaves are gone or elsewhere, out of the index.
func (x *index) removeBranch(bi int) {
	x.leafRoom -= cap(x.branches[bi].leaves)
	x.branches = fitted(slices.Delete(x.branches, bi, bi+1))
	x.branches[0].session, x.branches[0].counter = 0, 0
}
