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

// Change is one entry of the journal: the effect of one operation, enough to do it
// elsewhere. The pair of Index and N is its position; positions rise. Attr is the
// inode after it.
type Change struct {
	Index   uint64 // of the log entry
	N       uint32 // operation within it
	Kind    OpKind
	TimeNS  int64
	Session SessionID
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
	Was     uint64 // Gen of the inode before it, 0 for one that is new
	Extents []Extent
}

// Consumer is a registered reader of the journal. Entries before Index are done with.
// One that fell too far behind is Lost: entries that it needs are gone.
type Consumer struct {
	Name   string
	Index  uint64
	Behind uint64 // entries of the journal from Index on
	Lost   bool
}
