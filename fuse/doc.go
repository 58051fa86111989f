// Package fuse puts the client behind a mount point: the kernel's VFS asks, the
// client answers. It implements go-fuse's RawFileSystem, one method for each
// request of the FUSE protocol.
//
//	mount.go      Config, Mount, Server: mounting and tuning; fusermount.go for users who may not
//	options.go    how a mount differs from a plain one: ro, shown owners, a directory as its root, a timeout
//	rooted.go     the number of the root of such a mount
//	unmount.go    the end of a mount, and of copies of it
//	transport.go  how requests come: the seam, and /dev/fuse
//	uring.go      FUSE over io_uring: what all queues share, and what comes by /dev/fuse all the same
//	uringqueue.go a queue of a CPU, its threads, and the entries that requests come in
//	kernelconn.go what the daemon tells the kernel unasked, and backing files
//	backend.go    what this package asks of the client
//	request.go    a request: context, credentials, metrics, errno
//	fs.go         the file system and the conversion of attributes
//	export.go     lookup by inode, for file handles
//	names.go      lookup, mkdir, mknod, symlink, link, unlink, rename
//	inode.go      getattr, setattr, statx, xattrs, statfs
//	file.go       create, tmpfile, open to release, and the bytes between
//	locks.go      fcntl and flock
//	iomode.go     the I/O mode of an inode: pages, passed through or direct, settled in one place
//	passthrough.go what the kernel reads by itself; pin.go a version that it does; fill.go how files get there
//	filecache/    the directory that they are in
//	dir.go        opendir, readdir, readdirplus
//	handles.go    numbers that the kernel holds for open files
//	caches.go     what the kernel is given to keep, and how it is taken back
//	inotable.go   small bounded memories: generations at open, absent capabilities and ACLs
//	mountinfo.go  /proc/self/mountinfo
//	metrics.go    claudefs_fuse_*
//
// # Node ids
//
// A node id is the inode number. Inode numbers are never reused, so there is no
// tree to keep, no generation, and nothing to do at FORGET. An inode that is
// gone answers ESTALE, at which the kernel looks the path up afresh. The root is 1 to the kernel whatever
// directory that is: rooted exchanges the numbers, and kernelConn for notifications. A file handle is a node id too:
// what the kernel has forgotten it looks up by that (CAP_EXPORT_SUPPORT), so that a handle is good on
// every mount, for NFS's server as well.
//
// # Caches of the kernel
//
// The kernel keeps what the client has a lease of, for as long as that lasts, at most maxKernelTTL, and
// nothing else. A change elsewhere recalls the lease; before the client acknowledges that, the kernel is
// told (caches). So a program here sees what a program elsewhere has done once its call has returned.
//
// Attributes, ACLs and pages of an inode are taken back by INVAL_INODE, for which the acknowledgement waits: as long as
// pages are under I/O, at most client.forgetWait. A read(2) asks for attributes that the kernel does not have before it
// believes pages (CAP_AUTO_INVAL_DATA), so that only a mapping may see the old ones for longer then, until that I/O has ended.
//
// Names, absent ones too, are taken back by INC_EPOCH, all of the mount at once: the first time that another
// changes names of a directory of which the kernel has some. From then on names of that directory are asked for each time, until
// nobody else has changed any for sharedFor. So a directory is private until a recall says otherwise. A kernel before 6.16 keeps no names.
// INVAL_ENTRY would wait for the directory's lock. The kernel holds that while it waits for the answer to a LOOKUP,
// CREATE or UNLINK, and the answer may wait for the acknowledgement of another client, and so on in a circle.
//
// Pages of a file survive an open, and so does a listing (FOPEN_CACHE_DIR), if the lease of the inode has gone on since the open
// before, or else if its generation is the same. What this mount changes the kernel has in its pages, and drops listings and attributes by itself.
// There is no writeback cache: a write(2) reaches the client before it returns; what is written to a mapping reaches it at
// msync, by the kernel's flusher, or when a recall drops the page.
//
// What remains: an INVAL_INODE makes the kernel ignore the answer to a GETATTR that is just on its way, and go on with what it had
// before; a reader that asks while one change after the other is made may be one behind. After a suspension
// of the machine the kernel goes on with what is left of maxKernelTTL. INC_EPOCH would unmount whatever is mounted on a
// directory of this mount, when that is used next (d_invalidate; seen with Linux 6.18): as long as something is, no names are kept and it is not sent; names
// that were kept before may be a second old then. Of mounts in other mount namespaces the daemon does not know: with those, --cache-ttl 0. Deadlocks: docs/decisions/016-kernel-caches.md.
//
// # Passthrough
//
// With a cache directory, a file of 64 KiB or more that is whole there opens for reading so that the kernel reads it by itself,
// without a request (Linux 6.9, root). It is whole there after a handle has read it, or much of it in sequence, and was
// closed: then it is fetched in the background. What is there counts only if the cluster's attributes of now, at the open, name it.
//
//   - Such an inode is pinned: who has it open reads that version to the last close, whatever other mounts do. It cannot be taken back: what
//     locks, O_DIRECT and a recall do elsewhere does not reach it.
//   - While it is pinned, all other opens go to the daemon past the kernel's pages: for writing, and for reading what is newer. What they write
//     goes to the cluster and to the pinned file, so all on this machine see it, as on a local disk. That is so for truncations
//     and fallocate by any path too. A program is always run as the version that is pinned.
//   - While a handle uses the kernel's pages, and every writing handle does that is opened first, opens are as without the directory.
//   - A mapping outlives its descriptor, so a file that is mapped stays pinned. Through a shared mapping of a pinned inode stores go to the local file; they
//     reach the cluster by fsync, close or read of a descriptor of it, and within a second otherwise. msync(2) alone does not
//     wait for that. A mapping sees the pinned version, and what this machine writes: also one that was made by a later open.
//   - Attributes are the cluster's.
//
// One state for each open inode says which it is (inodeIO), because the kernel refuses a mix with EIO. Lock order: inodeIO.mu, then
// the lock of the cache; no request of the cluster is made under them. pin.order is taken with neither held, and is held over requests. Descriptors: one
// for each pinned inode, a quarter of what the process may have at most. Where the kernel or the user cannot pass through, or
// the cache directory is on a stacked file system, one line of the log says so at the mount.
//
// # Permissions
//
// The kernel checks them (default_permissions), by the mode and by the POSIX ACLs
// that it asks for (CAP_POSIX_ACL). That a file has no access ACL is believed for as long
// as the lease of its attributes goes on. The cluster keeps mode and ACL in step, gives what is made the default ACL
// of its directory, and applies the umask where there is none (CAP_DONT_MASK): only there
// both are known at once. Where an access ACL takes set-group-ID away the kernel says so with it
// (CAP_SETXATTR_EXT, since Linux 5.14).
//
// # Privileges
//
// CAP_HANDLE_KILLPRIV_V2 is negotiated, because without it each small write
// asks for security.capability first. In return set-user-ID and set-group-ID
// are cleared here: where a write, truncation or opening truncation says so,
// and at every change of owner.
//
// # Durability
//
// What is written is durable when fsync(2) returns, and a name that was made in a directory which the mount owns (one that it
// has made, while nobody else asks for it) when fsync of the file or of the directory does; everywhere else, and with
// --sync-names, when the call that made it returns. A mount that is killed loses only what was not synced, the newest first.
//
// # Interrupts
//
// The kernel sends INTERRUPT for any signal, and an answer of EINTR reaches
// programs that do not expect one of a disk. So a request is given up only when
// its thread is about to die (see request), as NFS does with hard mounts. A wait for a
// lock (SETLKW) ends at any signal, as everywhere.
//
// Options.Timeout gives every request but those waits an end: EIO. The client goes on with what it has been
// given; a command whose outcome is not known is made sure of before anything is answered from memory.
//
// # The end of a mount
//
// The kernel tells the daemon of the end of the connection alone, which comes with the last copy of the mount: other
// mount namespaces and bind mounts have copies. After an unmount poll(2) of /dev/fuse tells the two apart (POLLERR: the
// connection is over). Unmount returns when it finds that copies live on, so that the daemon can write everything and
// end, and they get ENOTCONN. When somebody else unmounts, Departed tells the daemon, which goes on serving the copies.
//
// # Locks
//
// The kernel keeps none: each lock of a file is asked of the cluster (flock(2) of a
// directory alone stays within the mount, the kernel does not tell of it). The owner of a
// fcntl lock is a process, which ends its locks by closing any descriptor of the file: so
// every handle is flushed at close, one for reading too (no FOPEN_NOFLUSH; it costs a
// request of some 25 us, answered from memory where there are no locks). The owner of a
// flock or an OFD lock is the open file: RELEASE ends it. The kernel does not tell OFD
// locks from others, so that a circle of waits of those is EDEADLK too, as it is not on a
// local file system.
//
// Locks are points of coherence, as with NFS: what is written is committed before a lock
// is set or removed, and who gets one drops pages that others have made old.
//
// # Transports
//
// Two carry requests to the file system, and everything else is the same for both: notifications and
// backing files go by the descriptor of /dev/fuse itself (kernelconn.go).
//
// dev is go-fuse's own server: threads read(2) requests from /dev/fuse and write(2) the answers.
//
// uring is FUSE over io_uring (Linux 6.14), the default where the kernel has it; the module's parameter
// enable_uring is turned on when that is allowed. There is a queue for each CPU that there may be, which that
// CPU's processes ask. Threads that are bound to the CPU answer: each has a ring of its own
// (iopath.Loop) and one entry in the queue, a place for a request with its data. One system call gives
// an answer and waits for the next request, and asking wakes no other CPU.
//
// A thread answers where it is, whether from memory or by asking the cluster: the kernel gives it nothing else
// meanwhile, since its entry is taken, and goes to the thread that has become free last. A
// queue begins with three threads and gets more as they are needed, up to maxDepth. The payload
// memory of all entries is bounded by maxPayloadBytes, from which depth and the largest READ and WRITE follow
// (shape). It is address space until it is used.
//
// Waits for locks would need more threads than there are to be: they are lent to goroutines, and the
// thread gets another entry, so that who unlocks finds one. At most maxLockWaits entries are added so, for good, as the
// kernel takes none back. A thread with several lends all that it gets, since what the kernel
// puts into one entry must not wait for what is in another.
//
// INIT, FORGET and INTERRUPT come by /dev/fuse in any case. An INTERRUPT may overtake its request and is tried again; one of
// a signal from before the request was taken is never sent, so a request that waits looks once for signals
// itself (request.go).
//
// # What deadlocks
//
// A process that uses its own mount: a page fault of an mmap holds a thread that
// the garbage collector waits for, while the collector has stopped the goroutine
// that would answer it. Plain system calls are safe.
package fuse
