// Package store is the shard service of one node: it puts, gets, deletes and
// lists the shards on the node's devices for whoever asks over wire.
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
// Start at serve.go (what each request does), then metrics.go.
package store
