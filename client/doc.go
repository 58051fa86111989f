// Package client is the part of ClaudeFS that runs where files are used: it
// speaks wire to the servers, holds a session and its leases, caches under them, stripes
// what is written and puts together what is read. Every front end (FUSE now; gateways later)
// stands on it.
//
// # Reading order
//
//	client.go     Client: configuration and session
//	command.go    how a command reaches the leader exactly once
//	lease.go      heartbeats, Watches, and until when what is in memory may be answered; boottime.go
//	recall.go     how leases are given back
//	observer.go   what keeps answers above the client (a kernel), and is told first
//	layout.go     the cluster's map, and which group takes the next stripe
//	cache.go      attributes, names and values under leases; listing.go whole directories
//	change.go     what a command of our own does to them
//	namespace.go  what does not concern file data
//	behind.go     the queue of names that are committed behind; make.go what is made so, unmake.go removed
//	table.go      the inodes that are open, owned or not committed
//	removal.go    an open against the end of what is opened
//	inode.go      the state that all handles of one inode share
//	atime.go      the times of readings
//	own.go        exclusive leases: what is kept back, and when it is given up
//	chunk.go      the buffers that writes gather in
//	file.go       handles: read, write, sync
//	writer.go     chunk -> stripe -> shards -> commit; combine.go the commits that nobody waits for
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
// behind.making, a shard of the inode table, then inode.mu, then behind.mu, then the locks of a cache's shard, leases, combiner,
// layout, memory, removals and lockTable, which call nothing; of the cache's shards one at a time. Of a read's locks, hedge.mu comes before stripeRead.mu, and that
// before layout's. A directory's inode.mu comes before that of what is made in it, which nobody else knows yet. No lock is held across a network call, but four: lockOwner.turn puts the
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
// An attribute, a name (absent ones too), a listing, a target, a small extended attribute and
// extents are answered from memory only under a lease: the leader tells before another changes it, and
// waits for the acknowledgement. All read leases of the session lapse together, 1.5 s after
// the last confirmed heartbeat was sent, by a clock that goes on while the machine sleeps; it is read after
// the answer was found. They are void, too, when the leader names a new epoch. An answer that a
// recall has overtaken is used once and not kept. While a command of our own is on its way, what it
// changes is not answered from memory: others may see it before we hear that it is done.
//
// What this client creates it owns: nobody else sees or changes it without asking. The changes that follow
// stay in memory, and close does not commit them: another's question does, or fsync, or 5 s, or the need for
// memory, or the end of the mount. The names of a directory that is owned are answered from memory;
// without Config.WriteBehind to make and remove them is durable when the call returns. What is closed is given up with its
// commit.
//
// With WriteBehind what is made in an owned directory is made in memory, under an inode number that the session has got
// ahead, as owned files are removed there, and committed in order by a queue that never waits. Its loss with this process is what POSIX allows before
// fsync: of the file, or of the directory (Dir.Sync). Everybody else sees it as done: whoever asks for the directory has it
// surrendered, which comes after the queue, as does every other command or query of this client that names what
// is pending. What the cluster refuses, or the end of the session takes, its handles tell, and the next Dir.Sync.
//
// What is above the client may keep an answer for as long as LeasedAttr or LeasedName says, and is told (Observer) when a lease is recalled,
// when all are void, and before an exclusive lease is surrendered: invalidate, drain, commit, acknowledge. What is given up
// without being asked is not leased above for keepMost before, so that nobody need be told. A new epoch is not used before the
// observer has forgotten what was kept under the old one: its use tells the leader that nothing is.
//
// What others commit to a file that is open here is seen at the next open at the latest
// (close-to-open), and without delay where this client has read it under a lease.
//
// A command that was given up may be carried out later. Until a later one has made that impossible, what it would
// change is not answered from memory, and then it is asked for anew.
//
// Locks are such points too: SetLock commits, and what is known of the inode is then as new as the lock.
//
// # Locks and sessions
//
// Locks belong to the session and go with it. The handles of an inode that had locks each
// tell so once, at their next write, sync or close, and the owner of the locks at its next
// lock: EIO. After that both go on in the new session, without the locks.
//
// # What waits for what
//
// Read leases and open marks are given back from memory: nothing of it waits for the cluster. The observer may wait for pages
// under I/O, on a goroutine of its own and with no lock held. Reads therefore wait for no command: an inode that the leader knows to be open
// is not registered again by them, which would wait for one that takes its name. Whatever else it waits for,
// the acknowledgement goes after forgetWait. To give up an exclusive lease takes puts and a command on
// an inode that this session owns, for which the leader recalls nothing of anybody. So nothing that
// others wait for waits for others.
package client
