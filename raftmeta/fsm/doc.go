// Package fsm is the namespace as a pure state machine: it takes one log entry
// after the other and changes an ordered key-value store. It knows no clock, no
// randomness, no goroutine and no network, so every replica and every replay
// computes the same state, byte for byte.
//
//   - Machine.Apply carries out a command; Read answers a query. Both see the
//     state through the small KV and Reader interfaces.
//   - A command is atomic: its writes gather in an overlay (tx.go) and reach the
//     KV only when every operation has succeeded.
//   - A refusal (a name that exists, an epoch that has passed) is a Reply; it is
//     state like any other. An error means that the state or the KV is broken:
//     the replica must halt, since answering would let replicas diverge.
//
// # State
//
// Keys are a prefix byte and big-endian fields, so that the order of keys is the
// order of numbers; values are fixed little-endian records that start with a
// version byte (record.go); the marks under A are bare numbers and the cluster's id.
//
//	A name                   counters and marks of the whole machine
//	C index n                journal: a change, while a consumer needs it
//	D dir name               directory entry: inode and type
//	E ino map end            extent row, by the offset of its end: the first row that
//	                         meets [off, ...) is then the first key above off
//	F pos                    delete feed: a stripe that nothing references
//	G pg                     placement group
//	H ino session            a session holds an inode that lost its last name
//	I ino                    inode
//	J device                 job of a device
//	K ino kind session owner start
//	                         lock: type, end, process
//	L ino                    a symbolic link's target
//	M node                   member: a voter or a learner, its address and its replica's data
//	N node                   node
//	P a                      the authority that signs certificates, or that there is none
//	P e KEY                  a key that was enrolled with a token, for whom and when
//	P r KEY                  a key that is refused, and since when
//	P t ID                   a token that has not been used
//	Q ino map                extent rows to be deleted in the background; map 0: attributes
//	R session seq            reply of a command, for its retries
//	S pg session counter     stripe table: live bytes, references, length, key
//	T session                session: floor, low-water mark, when it was opened, name
//	U pg                     what a placement group holds: stripes and bytes of shards
//	V device                 device
//	X ino name               extended attribute
//	Z session counter pg     stripe without references, at or above its session's floor
//	c name                   consumer of the journal: what it still needs
//	h session ino            the holds of a session
//	i session                inode numbers that a session may use
//	k session ino kind owner start
//	                         the locks of a session
//	l what id                locks of a session (1) or inode (2) that is gone, to be removed
//	                         in the background
//	q session                what a session has left, to be deleted in the background
//
// # Invariants
//
// A stripe has a row in S exactly while extents reference it or its id is at or
// above its session's floor and was committed once. It enters the feed when both
// end. An id below its session's floor is never committed; a session that is
// gone has an infinite floor. U counts the rows of S by group. Check recounts all
// that rows say of each other.
//
// # Journal
//
// While a consumer is registered each change of the namespace is a row under C, written
// with the command that made it. What an operation has changed is seen from the rows of
// inodes and attributes that it wrote (journal.go), not said by its carrier; an operation
// that writes none is not told. So carriers know nothing of the journal, and a new one needs
// a line in tx.change alone, if it is to be told as itself. Without a consumer a command
// costs one look at a mark.
//
// # Permissions
//
// With Cred.Enforce a command or a query goes as far as POSIX lets its user (perm.go), in the
// order, and with the errno, of Linux; user 0 may do all. Without it a kernel has
// checked. What is not a question of one operation is the caller's: the path that leads to a directory, what
// a file was opened for, whether it may be executed. POSIX ACLs (acl.go) are extended attributes
// in the form of the kernel, kept in step with the mode; one that a mode can say is the mode alone.
//
// # Deletion
//
// Every command is bounded, whatever it deletes (reap.go). Rows that nobody can see any more
// are put in a queue (Q, q), and OpReap deletes them: extents and attributes of inodes that are gone, the extents of
// a file that was emptied, and what a session leaves, which takes its inodes without a name with it.
// A file of many extents that is made shorter is cut: rows of its map at and above the cut are dead, and
// later writes there go to a second map. OpReap deletes the dead rows, moves those of the second map into
// the first, and so raises the cut until it is gone. What the file reads is the same all along.
//
// # Plans
//
// What the leader proposes to change in the layout is planned here too, by pure
// functions of the map and of U: which groups take stripes (placement.go), which
// slots are filled where (filling.go). A slot only ever changes to a device that is
// filled from the one that has its shards, and back, or is done.
package fsm
