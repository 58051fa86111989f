package fuse

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

const (
	// maxKernelTTL bounds how long the kernel may answer from what it was given without asking.
	maxKernelTTL = time.Second
	// sharedFor is how long after another has changed names of a directory its names are asked for each time.
	sharedFor = 10 * time.Second
	// intoKernel is what an answer may need, once it is given, to get into the kernel's caches.
	intoKernel = 5 * time.Millisecond
	// maxForgetting bounds the notifications that wait for pages at a time: each has a thread.
	maxForgetting = 64
	// unsureFor is how long after a recall the pages that a read without a lease has filled are looked at again: the change may
	// come after the read. unsureAfter is when.
	unsureFor   = 2 * time.Second
	unsureAfter = 50 * time.Millisecond
)

// caches is what the kernel was given to keep, and how it is taken back: the client's observer.
//
// Attributes and pages of an inode are taken back by INVAL_INODE. The kernel forgets the attributes at once, and
// ignores what an answer says that it has asked for before. Names are taken back by INC_EPOCH,
// all of the mount at once, the first time that another changes names of a directory of which the kernel has any;
// from then on the names of that directory are not kept, until nobody has changed them for a while. INVAL_ENTRY would wait for
// the lock of the directory, and so for requests that may wait for the acknowledgement that waits for it.
type caches struct {
	kernel *kernelConn
	epochs bool // the kernel knows INC_EPOCH; names are not kept by one that does not

	inodes   recent   // whose attributes the kernel may have
	dirs     recent   // of which it may have names
	shared   inoTable // until when (nanoseconds after born) the names of a directory are not kept
	listed   inoTable // when names of a directory went into the kernel with a listing last
	recalled inoTable // when inodes were recalled last
	unsure   inoTable // those whose pages are to be dropped once more
	born     time.Time

	// point is where the mount is, and below that something is mounted on one of its directories: INC_EPOCH would unmount
	// that, and so no names are kept then.
	point string
	below atomic.Bool

	forgetting chan struct{}
	fs         *fileSystem
}

// tell is what the kernel is told, for metrics.
type tell int

const (
	tellInode tell = iota
	tellNames
	tellAll
	tellEnd
)

var tellNamed = [tellEnd]string{"inode", "names", "all"}

func newCaches(fs *fileSystem) *caches {
	return &caches{fs: fs, born: time.Now(), forgetting: make(chan struct{}, maxForgetting)}
}

func (k *caches) now() uint64 { return uint64(time.Since(k.born)) }

// isShared reports that another has lately changed names of a directory.
func (k *caches) isShared(dir cfs.Ino) bool {
	until, known := k.shared.get(dir)
	return known && k.now() < until
}

// attrTTL is how long the kernel may keep an inode's attributes; they become the newest known.
func (fs *fileSystem) attrTTL(a *cfs.Attr) time.Duration {
	if !fs.caches.inodes.note(a.Ino) { // before it is leased: what ends the lease finds it noted
		return 0
	}
	leased, l := fs.LeasedAttr(a.Ino)
	if l.TTL > 0 {
		*a = leased
	}
	return min(l.TTL, maxKernelTTL)
}

// nameTTL is how long the kernel may keep it that i is behind a name, 0 for nothing.
func (fs *fileSystem) nameTTL(dir cfs.Ino, name string, i cfs.Ino) time.Duration {
	k := fs.caches
	if !k.epochs || k.below.Load() {
		return 0
	}
	if _, ttl := fs.LeasedName(dir, name); ttl <= 0 {
		return 0 // and nothing is to be taken back
	}
	if !k.dirs.note(dir) || k.isShared(dir) { // in this order, as with attributes
		return 0
	}
	behind, ttl := fs.LeasedName(dir, name)
	if behind != i {
		return 0
	}
	return min(ttl, maxKernelTTL)
}

// ForgetInode has the kernel forget attributes, ACLs and pages, of a file or a listing. It waits for pages that are being read or written.
func (k *caches) ForgetInode(i cfs.Ino) {
	k.recalled.swap(i, k.now())
	k.forgetting <- struct{}{}
	defer func() { <-k.forgetting }()
	err := k.kernel.invalInode(i, 0, 0)
	if errors.Is(err, unix.ENOENT) && k.inodes.has(i) {
		// The answer that makes the kernel know it may be on its way. Where it is known this is not done twice: each time the
		// kernel ignores the answer to what it is just asking, and goes on with what it had before.
		time.Sleep(intoKernel)
		err = k.kernel.invalInode(i, 0, 0)
	}
	k.tell(tellInode, err)
}

// pagesFilled takes note of a read that fills pages. One without a lease, while another changes the file, may be of before the
// change although the kernel was told to forget already. A read(2) would notice that, but a mapping would not.
func (k *caches) pagesFilled(i cfs.Ino) {
	at, ok := k.recalled.get(i)
	if !ok || k.now() > at+uint64(unsureFor) || k.fs.mark(i) != 0 {
		return
	}
	if _, waits := k.unsure.swap(i, 0); waits {
		return
	}
	time.AfterFunc(unsureAfter, func() {
		k.unsure.forget(i)
		k.tell(tellInode, k.kernel.invalInode(i, 0, 0))
	})
}

// ForgetNames has the kernel ask for the names of a directory.
func (k *caches) ForgetNames(dir cfs.Ino) {
	k.shared.swap(dir, k.now()+uint64(sharedFor))
	if !k.dirs.take(dir) {
		return
	}
	// What a listing tells of names is of the epoch in which it gets into the kernel, not of that in which it was asked for.
	if at, ok := k.listed.get(dir); ok && k.now() < at+uint64(intoKernel) {
		time.Sleep(intoKernel)
	}
	k.newEpoch(tellNames)
}

// newEpoch has the kernel ask for all names. What it keeps of them beside a mount on one of our directories, which would go,
// is of before that mount: it lapses.
func (k *caches) newEpoch(what tell) {
	if k.lookBelow(); !k.below.Load() {
		k.tell(what, k.kernel.incEpoch())
	}
}

// lookBelow looks whether something is mounted on a directory of the mount.
func (k *caches) lookBelow() {
	all, err := mounts()
	if err != nil {
		k.fs.log.Warn("the table of mounts cannot be read", "err", err)
		return
	}
	k.below.Store(mountedBelow(all, k.point))
}

// namesListed takes note that names of a directory go into the kernel with a listing, kept or not.
func (k *caches) namesListed(dir cfs.Ino, kept bool) {
	if !kept {
		return
	}
	k.listed.swap(dir, k.now())
	if k.isShared(dir) { // since after the first of them was found
		time.AfterFunc(intoKernel, func() { k.newEpoch(tellNames) })
	}
}

// ForgetAll has the kernel ask for everything. Only pages that are mapped it may have for a little longer: read(2)
// looks at the attributes first.
func (k *caches) ForgetAll() {
	names := false
	k.dirs.each(func(cfs.Ino) { names = true })
	if names {
		k.newEpoch(tellAll)
	}
	k.inodes.each(func(i cfs.Ino) { k.tell(tellInode, k.kernel.invalInode(i, -1, 0)) })
	open := map[cfs.Ino]struct{}{}
	k.fs.files.each(func(h *openFile) { open[h.ino] = struct{}{} })
	for i := range open {
		go func() {
			k.forgetting <- struct{}{}
			defer func() { <-k.forgetting }()
			k.tell(tellInode, k.kernel.invalInode(i, 0, 0))
		}()
	}
}

// tell counts what the kernel was told. That the mount has gone is no failure.
func (k *caches) tell(what tell, err error) {
	k.fs.metrics.told[what].Inc()
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOTCONN) {
		k.fs.log.Warn("the kernel does not take a notification", "err", err)
	}
}

var _ client.Observer = (*caches)(nil)

const (
	recentShards = 16
	// maxRecent bounds what each shard notes in a generation.
	maxRecent = 4096
)

// recent is the inodes that were noted in the last maxKernelTTL, and for up to as long again. It refuses what it has no room for.
type recent struct {
	shard [recentShards]struct {
		sync.Mutex
		young, old map[cfs.Ino]struct{}
		turned     time.Time // when young began
	}
}

// note notes an inode, if there is room.
func (r *recent) note(i cfs.Ino) bool {
	s := &r.shard[uint64(i)%recentShards]
	s.Lock()
	defer s.Unlock()
	if now := time.Now(); now.Sub(s.turned) >= maxKernelTTL {
		if s.old = s.young; now.Sub(s.turned) >= 2*maxKernelTTL {
			s.old = nil
		}
		s.young, s.turned = make(map[cfs.Ino]struct{}), now
	}
	if _, known := s.young[i]; known {
		return true
	}
	if len(s.young) >= maxRecent {
		return false
	}
	s.young[i] = struct{}{}
	return true
}

// has reports an inode that was noted.
func (r *recent) has(i cfs.Ino) bool {
	s := &r.shard[uint64(i)%recentShards]
	s.Lock()
	defer s.Unlock()
	_, young := s.young[i]
	_, old := s.old[i]
	return young || old
}

// take is has, and forgets it.
func (r *recent) take(i cfs.Ino) bool {
	s := &r.shard[uint64(i)%recentShards]
	s.Lock()
	defer s.Unlock()
	_, young := s.young[i]
	_, old := s.old[i]
	delete(s.young, i)
	delete(s.old, i)
	return young || old
}

// each calls fn with all that were noted.
func (r *recent) each(fn func(i cfs.Ino)) {
	for at := range r.shard {
		s := &r.shard[at]
		s.Lock()
		all := make([]cfs.Ino, 0, len(s.young)+len(s.old))
		for i := range s.young {
			all = append(all, i)
		}
		for i := range s.old {
			all = append(all, i)
		}
		s.Unlock()
		for _, i := range all {
			fn(i)
		}
	}
}
