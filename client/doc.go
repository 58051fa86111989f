// Package client is the part of ClaudeFS that runs where files are used: it
// speaks wire to the servers, holds a session, caches attributes and names for a
// short time, stripes what is written and puts together what is read. Every
// front end (FUSE now; gateways later) stands on it.
//
// # Reading order
//
//	client.go     Client: configuration, session, heartbeats
//	command.go    how a command reaches the leader exactly once
//	layout.go     the cluster's map, and which group takes the next stripe
//	cache.go      attributes and names with a time to live
//	namespace.go  what does not concern file data
//	inode.go      the state that all handles of one inode share
//	chunk.go      the buffers that writes gather in
//	file.go       handles: read, write, sync
//	writer.go     chunk -> stripe -> shards -> commit
//	restripe.go   what is worth it is written anew in the background; restripe_window.go
//	              is how one range of a file is
//	reader.go     extents -> shards -> bytes
//	shard.go      one shard from its device, or from K others
//	stripe.go     what the reads of one stripe share, so that nothing is fetched twice
//	hedge.go      when a shard is late: K others race it
//	whole.go      whole stripes for sequential readers while a device is lost
//	report.go     damaged and missing shards, told to their owners
//	copy.go       copies by reference
//	locks.go      fcntl and flock
//
// # Lock order
//
// Client.mu, then inode.mu, then the locks of cache, layout, memory and lockTable, which
// call nothing. Of a read's locks, hedge.mu comes before stripeRead.mu, and that
// before layout's. No lock is held across a network call, but four: lockOwner.turn puts the
// lock commands of an owner in sequence, and is taken alone; inode.order puts
// the operations that need an inode without dirty data (truncate, allocate) in
// sequence with its flushes, and is taken before inode.mu; Client.mapping and
// Client.opening, which are waited for with a context, let one goroutine ask for the
// map or replace a lost session.
//
// # Memory of reads
//
// Whole blocks are read straight into the caller's memory. A fetch or hedge that loses is
// cancelled, and the read waits until it has returned: wire touches nothing of a call
// after that, so that what comes late goes nowhere.
//
// # Coherence
//
// Close-to-open: Flush commits, Open asks the leader. Between the two a client
// may show attributes and names that are up to Config.CacheTTL old. Locks are such points
// too: SetLock commits, and what is known of the inode is then as new as the lock.
//
// # Locks and sessions
//
// Locks belong to the session and go with it. The handles of an inode that had locks each
// tell so once, at their next write, sync or close, and the owner of the locks at its next
// lock: EIO. After that both go on in the new session, without the locks.
package client
