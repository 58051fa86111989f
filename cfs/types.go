package cfs

import (
	"fmt"
	"math"
)

// Ino is an inode number: {site 8 bits, partition 8 bits, counter 48 bits},
// most significant first. 0 is never an inode.
type Ino uint64

// RootIno is the root directory of partition 0 of site 0. FUSE calls its root
// 1 too (FUSE_ROOT_ID in linux/fuse.h), so no translation is needed.
const RootIno Ino = 1

// MaxInoCounter is the largest counter part of an Ino.
const MaxInoCounter = 1<<48 - 1

// MakeIno builds an inode number from its parts.
func MakeIno(site, partition uint8, counter uint64) Ino {
	return Ino(site)<<56 | Ino(partition)<<48 | Ino(counter&MaxInoCounter)
}

// Site is the site that created the inode.
func (i Ino) Site() uint8 { return uint8(i >> 56) }

// Partition is the namespace partition that owns the inode.
func (i Ino) Partition() uint8 { return uint8(i >> 48) }

// Counter is the part that is unique within the partition.
func (i Ino) Counter() uint64 { return uint64(i) & MaxInoCounter }

// NodeID names a server; it is its Raft id too. 0 is never a node.
type NodeID uint16

// DeviceID names a device of a node: {node 16 bits, slot 16 bits}. A slot is
// never used twice on a node, so a replaced device gets a new id.
type DeviceID uint32

// MakeDeviceID builds the id of the device in a node's slot.
func MakeDeviceID(n NodeID, slot uint16) DeviceID { return DeviceID(n)<<16 | DeviceID(slot) }

// Node is the node that owns the device.
func (d DeviceID) Node() NodeID { return NodeID(d >> 16) }

// Slot is the device's slot on its node.
func (d DeviceID) Slot() uint16 { return uint16(d) }

// String is the form that people and logs see: node/slot.
func (d DeviceID) String() string { return fmt.Sprintf("%d/%d", d.Node(), d.Slot()) }

// SessionID names a client's session with the cluster. 0 is never a session.
type SessionID uint64

// StripeID names a stripe; it is never reused. Counter grows within a session.
type StripeID struct {
	Session SessionID
	Counter uint64
}

// Less orders stripe ids by session, then counter.
func (s StripeID) Less(o StripeID) bool {
	return s.Session < o.Session || s.Session == o.Session && s.Counter < o.Counter
}

// Prev is the last id that is less: what follows it is s or behind. The zero StripeID for itself.
func (s StripeID) Prev() StripeID {
	switch {
	case s.Counter > 0:
		s.Counter--
	case s.Session > 0:
		s.Session, s.Counter = s.Session-1, math.MaxUint64
	}
	return s
}

// IsZero reports the absent stripe.
func (s StripeID) IsZero() bool { return s == StripeID{} }

// String is the form that people and logs see: session.counter.
func (s StripeID) String() string { return fmt.Sprintf("%d.%d", uint64(s.Session), s.Counter) }

// PGID names a placement group. 0 is never a group.
type PGID uint32

// Epoch counts the changes of a placement group's slots and states.
type Epoch uint32

// UUID identifies a formatted device or a bootstrapped cluster (RFC 9562, v4).
type UUID [16]byte

// String is the canonical 8-4-4-4-12 form of RFC 9562.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Sizes that are part of the format.
const (
	// BlockSize is the unit of checksums and of alignment on devices, in bytes.
	BlockSize = 4096
	// MinShardSize and MaxShardSize bound a shard, in bytes.
	MinShardSize = BlockSize
	MaxShardSize = 1 << 20
	// MaxInline bounds the bytes of one inline extent.
	MaxInline = 16 << 10
	// SmallStripe is the most bytes that three copies (1+2) carry: above it the parity of a
	// full geometry costs less space and bandwidth.
	SmallStripe = 64 << 10
	// ManyExtents is how many extents a full stripe's range of a file may have however small
	// they are: more are worth merging.
	ManyExtents = 8
	// MaxName bounds a name in a directory, in bytes (NAME_MAX of linux/limits.h).
	MaxName = 255
	// MaxSymlink bounds a symbolic link's target, in bytes (PATH_MAX less the NUL).
	MaxSymlink = 4095
	// MaxXattrName and MaxXattrValue are XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h.
	MaxXattrName  = 255
	MaxXattrValue = 64 << 10
	// MaxXattrList is XATTR_LIST_MAX of linux/limits.h: all names of an inode, each with its NUL.
	MaxXattrList = 64 << 10
	// MaxLinks bounds the hard links of an inode, as ext4's dir_nlink-free limit does.
	MaxLinks = 65000
	// MaxFileSize is the largest offset that a byte of a file can have, plus one (MAX_LFS_FILESIZE).
	MaxFileSize = 1<<63 - 1
	// MaxCommandExtents bounds the extent rows that one command may change.
	MaxCommandExtents = 1024
)
