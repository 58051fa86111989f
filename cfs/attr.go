package cfs

// File type bits of a mode, as in stat(2) of Linux.
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
	ModeSetuid  = 0o4000
	ModeSetgid  = 0o2000
	ModeSticky  = 0o1000
	ModePerm    = 0o7777
)

// Attr is what stat(2) tells of an inode. Times are nanoseconds since the epoch.
type Attr struct {
	Ino    Ino
	Mode   uint32 // type and permission bits
	Nlink  uint32
	UID    uint32
	GID    uint32
	Rdev   uint32
	Size   uint64 // bytes
	Blocks uint64 // 512-byte units that extents hold, as st_blocks
	Map    uint32 // extent map id: rows of an older map are dead
	Gen    uint64 // rises with every change of the inode: a cache's validator
	// Owner has the exclusive lease of the inode while it is open; 0 for nobody. It alone changes the
	// inode, and the names in it, without asking, and may keep changes to itself until they are asked for.
	Owner SessionID

	AtimeNS int64
	MtimeNS int64
	CtimeNS int64
	BtimeNS int64
}

// IsDir reports a directory.
func (a *Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// IsRegular reports a regular file.
func (a *Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }

// SetMask says which fields of an Op's Attr a SetAttr changes.
type SetMask uint32

// The fields of SetAttr. The *Now forms take the command's time.
const (
	SetMode SetMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	SetCtime
	// SetKillPriv clears set-user-ID, and set-group-ID where group execute is set, as a write by another does.
	SetKillPriv
	// SetRelatime makes Attr.AtimeNS the time of the last reading, where that is due (AtimeDue), and changes nothing else. It
	// goes alone, and an inode that is gone is no failure.
	SetRelatime
)

// relatimeNS is how old the time of the last reading may get, one day.
const relatimeNS = int64(24 * 60 * 60 * 1e9)

// AtimeDue reports that a reading at atNS is to be kept, as relatime of mount(8) has it: the last that is known is not later
// than the last change, or a day old. One before the last change of the inode is not: somebody may have set the time since.
func (a *Attr) AtimeDue(atNS int64) bool {
	return atNS > a.AtimeNS && atNS > a.CtimeNS && (a.AtimeNS <= a.MtimeNS || a.AtimeNS <= a.CtimeNS || atNS-a.AtimeNS >= relatimeNS)
}

// Dirent is one name of a directory.
type Dirent struct {
	Name string
	Ino  Ino
	Mode uint32 // type bits at least
	Attr *Attr  // whole attributes, where the query asked for them
}
