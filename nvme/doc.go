// Package nvme stores shards on devices.
//
// A [Device] is a flat range of 4 KiB blocks that is read, written and flushed
// through an iopath.Engine; OpenDevice picks the backend by what the path is. A
// [Superblock] says which cluster and device id it was formatted for.
//
// A [Log] is the store on a device: segments filled by appending records, each
// under a header that carries its key and the checksum of each of its blocks.
// Nothing is ever overwritten in place; deleting clears a bit, a cleaner moves what
// lives out of segments that are mostly dead, and a segment that holds nothing live
// is used again under a new salt. docs/format/disk.md describes every byte.
//
// # When a put is durable
//
// Put returns nil when its record's header and payload are on stable storage
// and so is everything appended before it. Many goroutines call Put; each
// writes its own record (small ones share a write), and one flush serves all
// writes that ended before it began. The checksums are the client's: the log
// carries them, and compares them only for records that a crash may have torn.
//
// # Reading order
//
// device.go, device_host.go (files and block devices), passthrough.go and its
// neighbours (NVMe), sysfs.go, superblock.go; format.go, bitmap.go, footer.go and
// state.go (bytes); log.go (the public calls), put.go (the life of a write),
// replace.go (records that are replaced or deleted under way, and Verify),
// segments.go (where the next one goes), clean.go, idle.go, maintain.go (what is written
// behind), recover.go and scan.go (the start), scrub.go (looking for damage while the
// log is open) and check.go (while no log is); index.go, indexgrow.go, groups.go and
// crccache.go (memory).
//
// # Locks
//
// Log.mu guards everything in a Log; it is not held during I/O, but for that of OpenLog,
// and no other lock is taken under it, but for recovery.mu by OpenLog. A log has two goroutines: the maintainer, which
// alone writes segment headers, bitmaps, footers and the state, and the cleaner, which waits for it
// as puts do; the maintainer waits for writes alone. Arena memory is taken at OpenLog alone, so that puts
// which hold buffers can never wait for buffers.
package nvme
