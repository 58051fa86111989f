package cfs

// LockKind is the family of a lock. Locks of different families do not meet.
type LockKind uint8

// The families of locks.
const (
	LockPosix LockKind = iota + 1 // fcntl(2): of byte ranges; OFD locks are these with an owner for each open file
	LockFlock                     // flock(2): of whole files
)

// LockType is what a lock allows others.
type LockType uint8

// The types of locks. To set LockNone is to unlock.
const (
	LockNone LockType = iota
	LockRead
	LockWrite
)

// Lock is a lock of the bytes Start to End, both of them included, as in
// struct fuse_file_lock of linux/fuse.h. Owner tells the lockers of a session apart.
type Lock struct {
	Kind       LockKind
	Type       LockType
	Owner      uint64
	Start, End uint64
	PID        uint32    // for F_GETLK
	Session    SessionID // whose it is; in an operation the command's session counts
}

// SessionInfo is a session as the cluster knows it, for listings.
type SessionInfo struct {
	ID       SessionID
	Name     string
	OpenedNS int64
	LowWater uint64 // replies below it are forgotten
	Replies  uint64 // replies that are kept
	Floor    uint64 // stripes below it are committed or abandoned
	Holds    uint64 // inodes without a name that it has open
	Locks    uint64
	// What the leader alone knows.
	SilentMS uint64 // since it was last heard
	Leases   uint64 // read leases
	Opens    uint64 // inodes that it is known to have open
}

// The bounds of the journal. Beyond one of them the oldest changes go, and the consumers
// that still needed them are Lost. They are part of the replicated behaviour.
const (
	MaxJournalEntries = 1 << 20
	MaxJournalBytes   = 256 << 20
	// MaxConsumers bounds the consumers that are registered.
	MaxConsumers = 64
)

// Change is one record of the journal: one effect of an operation, enough to do the same
// elsewhere. The pair of Index and N is its position. Positions rise and are the same for
// every reader, so one that keeps the position of what it did last and skips what is not
// above it does everything exactly once, however often it is told.
//
// What a record says, by Kind:
//
//   - OpCreate: Ino is new. It has the name Name in Dir, or none where Name is empty
//     (O_TMPFILE). Value is the target of a symbolic link.
//   - OpLink: Ino has the name Name in Dir besides.
//   - OpUnlink, OpRmdir: Ino lost the name Name in Dir.
//   - OpRename: Ino went from Name in Dir to NewName in NewDir, and Other, which was there, lost
//     that name; with RenameExchange in Flags it has the old one instead.
//   - OpSetAttr: of Ino, Mask says what was asked for; 0 where something else had it for an
//     effect. Where Attr.Size is less than the size before, the bytes from there on are gone.
//   - OpSetXattr, OpRemoveXattr: of Ino, Name is the attribute's, Value its value. Effects of
//     other operations on attributes follow these as records of their own.
//   - OpWrite: the ranges Extents of Ino were replaced, in order: a hole is removed, an
//     unwritten one only fills holes.
//   - OpRelease: Ino is gone. It comes last, and however that came about: with the last name,
//     with the last close of what had lost its names before, or with the session that had it
//     open. Until then an inode without names has to be kept: it may be written, and linked again.
//
// Attr is the whole inode after the record (for OpRelease as it was last), without Owner, which
// is the cluster's own affair. What is not in a record follows from it: TimeNS is the new
// modification and change time of the directories, and the change time of Other; link counts follow from the names, and those of a directory
// from the directories in it. An exchange of bytes for the same bytes (OpSwap) is not told.
type Change struct {
	Index   uint64 // of the log entry
	N       uint32 // within it; from 0 on
	Kind    OpKind
	TimeNS  int64
	Session SessionID // whose command it was; 0 for the cluster's own
	UID     uint32
	GID     uint32

	Ino     Ino
	Dir     Ino
	NewDir  Ino
	Name    string
	NewName string
	Value   []byte
	Flags   uint32
	Mask    SetMask
	Attr    Attr
	Was     uint64 // Gen of the inode before the operation, 0 for one that is new
	Extents []Extent
	Other   Ino // OpRename: what had the new name before, 0 for none
}

// Consumer is a registered reader of the journal. Entries before Index are done with.
// One that fell too far behind is Lost: entries that it needs are gone. It keeps nothing in the
// journal any more, until it is removed and, once its copy has been made anew, added again.
type Consumer struct {
	Name        string
	Index       uint64
	Behind      uint64 // changes from Index on
	BehindBytes uint64 // that they take in the journal
	Lost        bool
}
