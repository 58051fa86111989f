package cfs

// OpKind is the kind of an operation on the namespace. The numbers are stable:
// they are on the wire and in the Raft log.
type OpKind uint8

// The operations. Each line says which fields of Op it reads. Name fields are
// bytes without '/' or NUL, 1 to MaxName long.
const (
	// OpCreate makes an inode of Attr.Mode's type {Dir, Name, Attr: Mode UID GID Rdev, Value: a symlink's target}.
	// With Exclusive an existing name is EEXIST; without it an existing regular file is returned as it is.
	// Flags is the umask, which a default ACL of Dir takes the place of. With Hold and without a Name it
	// makes a file that has no name and that the session holds (O_TMPFILE); OpLink may give it its first
	// one unless it is Exclusive.
	// With Ino it takes that number, one of those that OpGrantInos gave the session, which uses them in rising order;
	// the session must have the exclusive lease of Dir, else it is NoLease.
	OpCreate OpKind = iota + 1
	// OpLink adds a name to an inode {Ino, Dir, Name}.
	OpLink
	// OpUnlink removes a name that is not a directory {Dir, Name, Hold, Ino: what the session takes the name
	// for, 0 for anything; another is Conflict, since Hold was decided for it}.
	OpUnlink
	// OpRmdir removes an empty directory {Dir, Name}.
	OpRmdir
	// OpRename moves a name {Dir, Name, NewDir, NewName, Flags: RENAME_*, Hold and Ino: of the replaced inode}.
	OpRename
	// OpSetAttr changes attributes {Ino, Mask, Attr}.
	OpSetAttr
	// OpSetXattr sets an extended attribute {Ino, Name, Value, Flags: XATTR_*}. An ACL sets the mode too.
	OpSetXattr
	// OpRemoveXattr removes an extended attribute {Ino, Name}.
	OpRemoveXattr
	// OpWrite replaces ranges {Ino, Extents, Epochs, Attr.Size: the least size after, 0 for none;
	// Attr.MtimeNS: 0 for the command's time}. Epochs names every group that Extents names.
	// A range of kind ExtentHole is removed. With KeepSize the size does not grow.
	OpWrite
	// OpSwap replaces exactly the extents Expect by Extents {Ino, Expect, Extents, Epochs}; any difference is Conflict.
	// An inline extent is expected by its digest (Extent.Digest).
	OpSwap
	// OpRelease ends this session's hold of an inode without a name {Ino}.
	OpRelease
	// OpReap deletes up to MaxCommandExtents rows of what is queued for deletion.
	OpReap
	// OpOpenSession makes a session {Name: what its owner calls itself}: Result.Session.
	OpOpenSession
	// OpExpireSession ends a session {Sess}: its holds go, its stripe ids fall below the floor.
	OpExpireSession
	// OpSetNode records a node {Node}.
	OpSetNode
	// OpSetDevice records a device {Device}; another UUID under a known id is Conflict.
	OpSetDevice
	// OpSetGroups records placement groups {Groups, MapVersion: the map they were planned from; if it
	// has changed, Conflict}. A group with id 0 is new; the epoch of one that changes rises by one.
	OpSetGroups
	// OpFeedDone says how far a device has followed the delete feed {Device: ID, FeedPos}.
	OpFeedDone
	// OpFillDone says that a filling slot has every shard {Device: ID; Groups: one, of which ID and Epoch
	// count}. Another epoch, or a slot that is not filling, is Conflict.
	OpFillDone
	// OpDropGroups forgets groups {Groups: of which ID counts} that are not writable and have no stripe; others stay.
	OpDropGroups
	// OpSetJob records the job of a device {Job}. Where only DoneBytes and TotalBytes differ the map's version stays.
	OpSetJob
	// OpSurrender gives up this session's exclusive lease of an inode {Ino}; without one it does nothing.
	OpSurrender
	// OpLock sets a lock of this session, or removes one {Ino, Lock}. Another's in the way is Locked.
	OpLock
	// OpSetConsumer makes a consumer of the journal {Name}, which needs what comes after, or records how far one is
	// {Name, Index: the first log index that it still needs}. It never goes back.
	OpSetConsumer
	// OpDropConsumer forgets a consumer of the journal {Name}.
	OpDropConsumer
	// OpRemoveNode forgets a node {Node: ID} that has no device left and is no voter.
	OpRemoveNode
	// OpSetCA records the authority that signs the cluster's certificates, once {CA}; and, again with the same, for whom it
	// has signed before {CA, Enrolled: Key, Role, Node, Name}.
	OpSetCA
	// OpAddToken records a token for enrolment {Token}.
	OpAddToken
	// OpUseToken takes a token away {Token: ID, Hash; Enrolled: Key, Node, Name}; one that is unknown, spent or has
	// expired is Denied. For whom it was is recorded, and a server's number is its own from then on. Without a Hash
	// nobody enrols.
	OpUseToken
	// OpRevoke refuses a key from now on {Name: its id}.
	OpRevoke
	// OpSetReplica records which data a member has its replica by {Node: ID, Value: its name of 16 bytes, then names
	// that it had before}. Where the recorded name is none of them it is Conflict; of no member it is NotFound.
	OpSetReplica
	// OpGrantInos gives the session inode numbers to make things in Dir's partition by {Dir, Index: how many}; the
	// first is Result.Attr.Ino.
	OpGrantInos

	opKindEnd
)

// Valid reports that k is an operation of this version.
func (k OpKind) Valid() bool { return k >= OpCreate && k < opKindEnd }

// OfLeader reports that k is an operation that the leader proposes, without a session.
func (k OpKind) OfLeader() bool {
	return k >= OpReap && k != OpSurrender && k != OpLock && k != OpGrantInos
}

// Rename flags, as in linux/fs.h.
const (
	RenameNoreplace = 1
	RenameExchange  = 2
	RenameWhiteout  = 4
)

// Xattr flags, as in linux/xattr.h.
const (
	XattrCreate  = 1
	XattrReplace = 2
	// XattrKillSgid is no flag of setxattr(2): the caller is not in the file's group, so that an
	// access ACL takes set-group-ID away.
	XattrKillSgid = 1 << 8
)

// The extended attributes that are POSIX ACLs, in the form of linux/posix_acl_xattr.h.
const (
	XattrACLAccess  = "system.posix_acl_access"
	XattrACLDefault = "system.posix_acl_default"
)

// PGEpoch says under which epoch of a group shards were put.
type PGEpoch struct {
	PG    PGID
	Epoch Epoch
}

// Op is one operation. It is flat, as a submission queue entry or a FUSE
// request is: Kind says which fields it reads (see OpKind), the others are zero.
type Op struct {
	Kind      OpKind
	Ino       Ino
	Dir       Ino
	NewDir    Ino
	Name      string
	NewName   string
	Value     []byte
	Flags     uint32
	Mask      SetMask
	Attr      Attr
	Extents   []Extent
	Expect    []Extent
	Epochs    []PGEpoch
	Exclusive bool
	Hold      bool // the session has the inode open: keep it though its last name goes
	KeepSize  bool
	// Lease asks OpCreate for the exclusive lease of what it makes; the other operations on an inode
	// are then made under it and are NoLease without it.
	Lease bool
	// AtNS is when the session made a change that it has kept back, under the exclusive lease of what it changed; 0: the
	// command's time.
	AtNS int64
	// Holds are other sessions that have the inode open whose last name OpUnlink or OpRename takes.
	// The leader fills it in.
	Holds []SessionID
	Lock  Lock

	// Of the operations that the leader proposes (OpKind.OfLeader).
	Sess       SessionID
	Node       Node
	Device     Device
	Groups     []PG
	MapVersion uint64
	Job        Job
	Index      uint64
	CA         CA
	Token      Token
	Enrolled   Enrolled
}

// Cred is on whose behalf a command acts. With Enforce the namespace checks
// permissions itself; without it a kernel has (FUSE with default_permissions).
type Cred struct {
	UID     uint32
	GID     uint32
	Groups  []uint32
	Enforce bool
	// Umask is for the client, which puts it into the operations that make something. It is not sent.
	Umask uint32
}

// Command is a batch of operations that take effect together or not at all,
// and exactly once: a retry carries the same Session and Seq and gets the same
// Reply. Sequences of a session start at 1 and may be applied in any order.
// Session 0 is the leader itself: its operations (OpReap and after) are
// idempotent, keep no reply and have no sequence.
type Command struct {
	Session SessionID
	Seq     uint64
	// LowWater: all replies below it have been received, so that they can be forgotten.
	LowWater uint64
	// Floor: all stripes of this session with a counter below it are committed or abandoned.
	Floor uint64
	Cred  Cred
	Ops   []Op
}

// Result is the outcome of one operation: the inode that it made or changed,
// after the change. For OpUnlink and OpRename Attr is the inode that lost its
// name (Ino 0 for none).
type Result struct {
	Attr Attr
	// Dir is the parent's attributes after the change, NewDir those of OpRename's
	// second parent where it differs (Ino 0 for none).
	Dir    Attr
	NewDir Attr
	// DirWas is Dir's generation before the change, where the change was to one
	// directory: who knew all its names then knows them now.
	DirWas uint64
	// Session is the one that OpOpenSession made.
	Session SessionID
}

// Reply is the outcome of a command. Kind is KindOK or why nothing was done;
// Failed is then the index of the operation that failed.
type Reply struct {
	Kind    Kind
	Failed  uint16
	Index   uint64 // log index at which it took effect
	Results []Result
	// Leased says that the session has read leases of the names and inodes that the command
	// changed, under the lease epoch of its last heartbeat. It is not part of the state.
	Leased bool
}

// QueryKind is the kind of a read of the namespace.
type QueryKind uint8

// The queries; each line says which fields of Query it reads.
const (
	// QueryLookup finds a name {Dir, Name}: Attr is the inode's, Dir the parent's.
	QueryLookup QueryKind = iota + 1
	// QueryGetAttr {Ino}.
	QueryGetAttr
	// QueryReadDir lists names after Name {Dir, Name: "" for the start, Limit, WithAttrs}.
	QueryReadDir
	// QueryReadlink {Ino}: Value is the target.
	QueryReadlink
	// QueryGetXattr {Ino, Name}: Value.
	QueryGetXattr
	// QueryListXattr {Ino}: Names.
	QueryListXattr
	// QueryExtents lists the extents that meet [Off, End), at most Limit {Ino, Off, End, Limit}.
	QueryExtents
	// QueryStatfs.
	QueryStatfs
	// QueryMap is the cluster's layout.
	QueryMap
	// QueryFeed lists freed stripes after position Off, at most Limit.
	QueryFeed
	// QueryStripes lists the stripe table of a group after a stripe {PG, Stripe: zero for the start, Limit}: Stripes.
	QueryStripes
	// QueryFates says what becomes of stripes that a device holds {Stripes: at most MaxFates}: Fates, one for each.
	QueryFates
	// QueryWindows goes through the extents of all files from {Ino, Off} on, and lists ranges that are worth
	// writing anew: Windows, of files whose last change is before BeforeNS. More says that there are other files,
	// to be asked for from Next on.
	QueryWindows
	// QueryUsage is what each group holds: Usage.
	QueryUsage
	// QueryLock finds a lock in the way of one {Ino, Lock, Session}: Lock, of type LockNone if there is none.
	QueryLock
	// QueryJournal lists changes from {Index, Off: the number within it} on, at most Limit. It waits for one up to WaitMS:
	// Changes, and Next.Off, the first index that is kept. Index 0 is that one; another below it is Stale. Without More
	// the last entry is whole. NotFound: there is no consumer, so that no journal is kept.
	QueryJournal
	// QueryConsumers lists the consumers of the journal: Consumers.
	QueryConsumers
	// QuerySessions lists sessions after {Session, Limit}: Sessions.
	QuerySessions
	// QueryTokens lists the tokens that have not been used, without their hashes: Tokens.
	QueryTokens
	// QueryEnrolled lists the keys that were enrolled after {Name: key id, Limit}: Enrolled, in the order of their ids.
	QueryEnrolled

	queryKindEnd
)

// Valid reports that k is a query of this version.
func (k QueryKind) Valid() bool { return k >= QueryLookup && k < queryKindEnd }

// MaxFates bounds the stripes of one QueryFates.
const MaxFates = 1024

// Query is one linearizable read; it is flat as Op is.
type Query struct {
	Kind      QueryKind
	Ino       Ino
	Dir       Ino
	Name      string
	Off       uint64
	End       uint64
	Limit     uint32
	WithAttrs bool

	PG       PGID
	Stripe   StripeID
	Stripes  []StripeRef
	BeforeNS int64

	// Session asks for read leases of what the answer says, under the lease epoch Epoch; 0 for none.
	Session SessionID
	Epoch   uint64
	Open    bool // QueryExtents: the session has the inode open from now on
	Lock    Lock
	Index   uint64
	WaitMS  uint32
	Cred    Cred // with Enforce the namespace checks that it may ask
}

// StripeRef names a stripe and the group that it is in.
type StripeRef struct {
	PG     PGID
	Stripe StripeID
}

// StripeInfo is a row of the stripe table.
type StripeInfo struct {
	StripeRef
	Len  uint32 // data bytes
	Refs uint32 // extents that name it; 0 while its session's floor is not above it
	Live uint64 // bytes that extents name
}

// Fate is what becomes of a stripe.
type Fate uint8

// The fates. Only FateDead is final: a stripe below its session's floor that no
// extent names can never be committed again.
const (
	FateLive    Fate = iota + 1 // committed
	FatePending                 // not committed, and may still be
	FateDead
)

// Window is a range [Off, End) of a file.
type Window struct {
	Ino      Ino
	Off, End uint64
}

// GroupUsage is what a group holds: committed stripes, and the bytes of all their shards.
type GroupUsage struct {
	PG       PGID
	Stripes  uint64
	RawBytes uint64
}

// Freed is an entry of the delete feed: a stripe that nothing references any more.
type Freed struct {
	Pos    uint64
	PG     PGID
	Stripe StripeID
}

// Answer is the result of a Query. More says that a listing goes on: ask again
// after the last entry.
type Answer struct {
	Kind    Kind
	Attr    Attr
	Dir     Attr
	Value   []byte
	Names   []string
	Entries []Dirent
	Extents []Extent
	Statfs  Statfs
	Map     *Map
	Freed   []Freed
	More    bool

	Stripes []StripeInfo
	Fates   []Fate
	Windows []Window
	Next    Window // Ino and Off
	Usage   []GroupUsage

	// Leased says that the session has the read leases that it asked for: what the answer says
	// stays so until it is told otherwise, or its leases lapse.
	Leased    bool
	Lock      Lock
	Changes   []Change
	Consumers []Consumer
	Sessions  []SessionInfo
	Tokens    []Token
	Enrolled  []Enrolled
}
