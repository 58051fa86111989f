// Package invariants asserts what must hold, in builds that look for bugs.
//
// With the build tag `invariants`, or under the race detector, Check panics
// when its condition is false. In every other build it is empty and inlined
// away, arguments and all, so it may stand on a hot path:
//
//	invariants.Check(seg.durable <= seg.written, "segment %d: durable %d past written %d", seg.id, seg.durable, seg.written)
//
// A condition that costs something to compute goes behind the constant:
//
//	if invariants.Enabled {
//		invariants.Check(index.sorted(), "index out of order")
//	}
//
// Check is for what only a bug of ours can break. What a disk, a peer or a user
// can break is an error, in every build.
package invariants
