// Package store is the shard service of one node: it puts, gets, deletes and
// lists the shards on the node's devices for whoever asks over wire, and it mends them.
//
// A shard travels without a copy: [Store.Alloc] gives the connection an arena
// buffer, the socket is read into it, and the same buffer is written to the
// device; a get is read from the device into an arena buffer that goes to the
// socket and is released when it is there. Nothing here is queued: what runs at
// a time is bounded by the wire server's requests in flight for each connection
// and by the arena, whose exhaustion stops the reading of sockets.
//
// A put names the epoch of its placement group under which the client chose the
// device. A put under an older epoch than the node knows is refused, so that a
// device that has been replaced takes nothing more; one under a newer epoch is
// accepted, because the namespace decides again at the commit. Checksums are
// only carried: the client that wrote them is the one that checks them.
//
// # Mending
//
// [Store.Mend] makes the shards on each device what the namespace says that they
// should be. Three things go on for each device:
//
//   - Filling (fill.go). A slot of a group that has got another device is filled: the
//     stripes of the group are gone through, and each shard that is not there is
//     taken from the device that had it, or computed from K others (fetch.go). What
//     is there is passed over, so that a fill goes on where it was, whatever ended it.
//     What a node moves for one job in a second is bounded (rate.go), and a
//     job that is paused or cancelled moves nothing. At the end the cluster is told.
//   - Repair (repair.go). A shard that a scrub, a reader or another node finds
//     damaged, and one that a walk (mend.go) finds missing, comes into a
//     bounded queue, each once. It is looked at again, and made anew from the others if
//     it is not whole and its stripe is there. What cannot be repaired is kept and tried again.
//   - Reconciling (reconcile.go). All records are held against the stripe table, a
//     page at a time. One is deleted when its stripe is dead, which is final, or
//     when its slot has another device and every shard. A stripe that may still be committed
//     is left alone, however old it is: nothing here looks at a clock.
//
// The namespace is asked linearizably; the map is this node's own and may be behind.
// So whatever is decided by a map is decided by one that was taken after what it is held
// against, and nothing is deleted that was put under a newer epoch than the map's.
// Reconcile and fill meet at device.deleting: a fill passes it once after taking its map, and
// what it then finds on the device stays.
//
// # Memory
//
// Mending holds at most MendArenaBytes of the arena: maxMending stripes at a time, each
// with the shards that it reads and the one that it makes. It waits for arena memory
// while it holds some; with that much in the arena beside what requests use, it waits for
// requests alone, which end without it.
//
// Start at serve.go (what each request does), device.go, then mend.go.
package store
