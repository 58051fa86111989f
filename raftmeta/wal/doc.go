// Package wal is the durable log of one Raft voter: hard states, entries and
// marks, appended to prezeroed segment files, each append one write and, where
// Raft asks for it, one fdatasync. docs/format/raftlog.md has the bytes.
//
// Open reads everything back and says where writing goes on. It tells a torn
// tail, which a crash leaves and which no one was promised, from damage to what
// had been synced: every record says up to which offset of its segment the log
// was durable when it was written, so a bad record below that offset is
// corruption (an error that names file and offset) and one above it is the end
// of the log. Damage to the very last synced append, after which nothing was
// written, looks like a torn tail; the other voters still have it.
//
// A Log is used by one goroutine. After the first failed write or sync it
// refuses everything with the same error: what the kernel has dropped from its
// cache cannot be made durable by asking again.
package wal
