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
//	reader.go     extents -> shards -> bytes, reconstructing what fails
//
// # Lock order
//
// Client.mu, then inode.mu, then the locks of cache, layout and memory, which
// call nothing. No lock is held across a network call, but three: inode.order puts
// the operations that need an inode without dirty data (truncate, allocate) in
// sequence with its flushes, and is taken before inode.mu; Client.mapping and
// Client.opening, which are waited for with a context, let one goroutine ask for the
// map or replace a lost session.
//
// # Coherence
//
// Close-to-open: Flush commits, Open asks the leader. Between the two a client
// may show attributes and names that are up to Config.CacheTTL old.
package client
