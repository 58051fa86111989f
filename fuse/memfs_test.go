package fuse

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

// memFS is a POSIX file system in memory behind the interfaces of this package:
// what the front end is tested on without a cluster.
type memFS struct {
	locks memLocks
	ttl   time.Duration

	mu    sync.Mutex
	nodes map[cfs.Ino]*memNode
	last  cfs.Ino
	calls map[string]int
	// before, if set, runs ahead of each call without the lock held; its error is the call's.
	before atomic.Pointer[func(ctx context.Context, call string, ino cfs.Ino) error]
}

type memNode struct {
	attr    cfs.Attr
	names   map[string]cfs.Ino
	target  string
	xattrs  map[string][]byte
	pages   map[uint64]*[cfs.BlockSize]byte
	holders int
	sealed  bool // made without a name, and to stay so
}

func newMemFS() *memFS {
	m := &memFS{ttl: time.Second, nodes: map[cfs.Ino]*memNode{}, calls: map[string]int{}}
	m.add(cfs.ModeDir|0o755, 0, 0)
	return m
}

func (m *memFS) backend() backend {
	return backend{namespace: m, inodes: m, leases: m, xattrs: m, copier: m, tmpfiles: m, locker: &m.locks}
}

// enter counts a call, runs the hook and takes the lock.
func (m *memFS) enter(ctx context.Context, call string, ino cfs.Ino) error {
	if hook := m.before.Load(); hook != nil {
		if err := (*hook)(ctx, call, ino); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.calls[call]++
	return nil
}

func (m *memFS) count(call string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[call]
}

func (m *memFS) add(mode, uid, gid uint32) *memNode {
	m.last++
	now := time.Now().UnixNano()
	n := &memNode{
		attr:   cfs.Attr{Ino: m.last, Mode: mode, Nlink: 1, UID: uid, GID: gid, Gen: 1, AtimeNS: now, MtimeNS: now, CtimeNS: now, BtimeNS: now},
		xattrs: map[string][]byte{}, pages: map[uint64]*[cfs.BlockSize]byte{},
	}
	if n.attr.IsDir() {
		n.attr.Nlink, n.names = 2, map[string]cfs.Ino{}
	}
	m.nodes[m.last] = n
	return n
}

func (n *memNode) changed(data bool) {
	now := time.Now().UnixNano()
	n.attr.CtimeNS = now
	if data {
		n.attr.MtimeNS = now
	}
	n.attr.Gen++
	n.attr.Blocks = uint64(len(n.pages)) * cfs.BlockSize / 512
}

func (m *memFS) node(ino cfs.Ino) (*memNode, error) {
	if n := m.nodes[ino]; n != nil {
		return n, nil
	}
	return nil, cfs.NotFound
}

func (m *memFS) dirNode(ino cfs.Ino) (*memNode, error) {
	n, err := m.node(ino)
	if err == nil && !n.attr.IsDir() {
		return nil, cfs.NotDir
	}
	return n, err
}

// entry is the node under a name.
func (m *memFS) entry(dir cfs.Ino, name string) (parent, child *memNode, err error) {
	if parent, err = m.dirNode(dir); err != nil {
		return nil, nil, err
	}
	if ino, ok := parent.names[name]; ok {
		return parent, m.nodes[ino], nil
	}
	return parent, nil, nil
}

func (m *memFS) drop(n *memNode) {
	n.attr.Nlink--
	if n.attr.IsDir() {
		n.attr.Nlink = 0
	}
	n.changed(false)
	if n.attr.Nlink == 0 && n.holders == 0 {
		delete(m.nodes, n.attr.Ino)
	}
}

func (m *memFS) Lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	if err := m.enter(ctx, "lookup", dir); err != nil {
		return cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	_, n, err := m.entry(dir, name)
	if err != nil {
		return cfs.Attr{}, err
	}
	if n == nil {
		return cfs.Attr{}, cfs.E("lookup "+name, cfs.NotFound, nil)
	}
	return n.attr, nil
}

func (m *memFS) Create(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, mode, rdev uint32, target string, exclusive bool) (cfs.Attr, error) {
	if err := m.enter(ctx, "create", dir); err != nil {
		return cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	parent, old, err := m.entry(dir, name)
	if err != nil {
		return cfs.Attr{}, err
	}
	if old != nil {
		if exclusive || !old.attr.IsRegular() {
			return cfs.Attr{}, cfs.Exists
		}
		return old.attr, nil
	}
	if parent.attr.Nlink == 0 {
		return cfs.Attr{}, cfs.NotFound
	}
	if parent.xattrs[cfs.XattrACLDefault] == nil {
		mode &^= cred.Umask
	}
	gid := cred.GID
	if parent.attr.Mode&cfs.ModeSetgid != 0 {
		gid = parent.attr.GID
		if mode&cfs.ModeType == cfs.ModeDir {
			mode |= cfs.ModeSetgid
		}
	}
	n := m.add(mode, cred.UID, gid)
	n.attr.Rdev, n.target, n.attr.Size = rdev, target, uint64(len(target))
	parent.names[name] = n.attr.Ino
	if n.attr.IsDir() {
		parent.attr.Nlink++
	}
	parent.changed(true)
	return n.attr, nil
}

func (m *memFS) Link(ctx context.Context, _ cfs.Cred, ino, dir cfs.Ino, name string) (cfs.Attr, error) {
	if err := m.enter(ctx, "link", ino); err != nil {
		return cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	parent, old, err := m.entry(dir, name)
	if err != nil {
		return cfs.Attr{}, err
	}
	n, err := m.node(ino)
	switch {
	case err != nil:
		return cfs.Attr{}, err
	case old != nil:
		return cfs.Attr{}, cfs.Exists
	case n.attr.IsDir():
		return cfs.Attr{}, cfs.Permission
	case n.attr.Nlink == 0 && n.sealed:
		return cfs.Attr{}, cfs.NotFound
	}
	parent.names[name] = ino
	parent.changed(true)
	n.attr.Nlink++
	n.changed(false)
	return n.attr, nil
}

func (m *memFS) Unlink(ctx context.Context, _ cfs.Cred, dir cfs.Ino, name string) error {
	if err := m.enter(ctx, "unlink", dir); err != nil {
		return err
	}
	defer m.mu.Unlock()
	parent, n, err := m.entry(dir, name)
	switch {
	case err != nil:
		return err
	case n == nil:
		return cfs.NotFound
	case n.attr.IsDir():
		return cfs.IsDir
	}
	delete(parent.names, name)
	parent.changed(true)
	m.drop(n)
	return nil
}

func (m *memFS) Rmdir(ctx context.Context, _ cfs.Cred, dir cfs.Ino, name string) error {
	if err := m.enter(ctx, "rmdir", dir); err != nil {
		return err
	}
	defer m.mu.Unlock()
	parent, n, err := m.entry(dir, name)
	switch {
	case err != nil:
		return err
	case n == nil:
		return cfs.NotFound
	case !n.attr.IsDir():
		return cfs.NotDir
	case len(n.names) > 0:
		return cfs.NotEmpty
	}
	delete(parent.names, name)
	parent.attr.Nlink--
	parent.changed(true)
	m.drop(n)
	return nil
}

func (m *memFS) Rename(ctx context.Context, _ cfs.Cred, dir cfs.Ino, name string, newDir cfs.Ino, newName string, flags uint32) error {
	if err := m.enter(ctx, "rename", dir); err != nil {
		return err
	}
	defer m.mu.Unlock()
	from, n, err := m.entry(dir, name)
	if err != nil {
		return err
	}
	to, old, err := m.entry(newDir, newName)
	if err != nil {
		return err
	}
	switch {
	case n == nil, flags&cfs.RenameExchange != 0 && old == nil:
		return cfs.NotFound
	case flags&cfs.RenameNoreplace != 0 && old != nil:
		return cfs.Exists
	case old == n:
		return nil
	}
	if flags&cfs.RenameExchange != 0 {
		from.names[name], to.names[newName] = old.attr.Ino, n.attr.Ino
		old.changed(false)
	} else {
		if old != nil {
			switch {
			case old.attr.IsDir() && !n.attr.IsDir():
				return cfs.IsDir
			case !old.attr.IsDir() && n.attr.IsDir():
				return cfs.NotDir
			case len(old.names) > 0:
				return cfs.NotEmpty
			}
			m.drop(old)
		}
		delete(from.names, name)
		to.names[newName] = n.attr.Ino
	}
	m.countLinks(from)
	m.countLinks(to)
	n.changed(false)
	return nil
}

// countLinks sets a directory's link count by its subdirectories.
func (m *memFS) countLinks(n *memNode) {
	n.attr.Nlink = 2
	for _, ino := range n.names {
		if m.nodes[ino].attr.IsDir() {
			n.attr.Nlink++
		}
	}
	n.changed(true)
}

func (m *memFS) Readlink(ctx context.Context, ino cfs.Ino) (string, error) {
	if err := m.enter(ctx, "readlink", ino); err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

func (m *memFS) GetAttr(ctx context.Context, ino cfs.Ino) (cfs.Attr, error) {
	if err := m.enter(ctx, "getattr", ino); err != nil {
		return cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return cfs.Attr{}, err
	}
	return n.attr, nil
}

func (n *memNode) killPriv() {
	n.attr.Mode &^= cfs.ModeSetuid
	if n.attr.Mode&0o010 != 0 {
		n.attr.Mode &^= cfs.ModeSetgid
	}
}

func (m *memFS) SetAttr(ctx context.Context, _ cfs.Cred, ino cfs.Ino, mask cfs.SetMask, want cfs.Attr) (cfs.Attr, error) {
	if err := m.enter(ctx, "setattr", ino); err != nil {
		return cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return cfs.Attr{}, err
	}
	now := time.Now().UnixNano()
	has := func(bit cfs.SetMask) bool { return mask&bit != 0 }
	if has(cfs.SetSize) {
		n.truncate(want.Size)
	}
	n.changed(has(cfs.SetSize))
	if has(cfs.SetKillPriv) {
		n.killPriv()
	}
	if has(cfs.SetMode) {
		n.attr.Mode = n.attr.Mode&cfs.ModeType | want.Mode
	}
	if has(cfs.SetUID) {
		n.attr.UID = want.UID
	}
	if has(cfs.SetGID) {
		n.attr.GID = want.GID
	}
	if has(cfs.SetAtime) {
		n.attr.AtimeNS = want.AtimeNS
	}
	if has(cfs.SetAtimeNow) {
		n.attr.AtimeNS = now
	}
	if has(cfs.SetMtime) {
		n.attr.MtimeNS = want.MtimeNS
	}
	if has(cfs.SetMtimeNow) {
		n.attr.MtimeNS = now
	}
	return n.attr, nil
}

func (m *memFS) Statfs(context.Context) (cfs.Statfs, error) {
	return cfs.Statfs{TotalBytes: 4 << 30, FreeBytes: 1 << 30, Inodes: 10}, nil
}

// LeasedAttr: what has another generation is another's, since the tests change it as others do.
func (m *memFS) LeasedAttr(ino cfs.Ino) (cfs.Attr, client.Lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[ino]
	if n == nil {
		return cfs.Attr{}, client.Lease{}
	}
	return n.attr, client.Lease{TTL: m.ttl, Mark: n.attr.Gen + 1}
}

func (m *memFS) LeasedName(dir cfs.Ino, name string) (cfs.Ino, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.nodes[dir]; d != nil {
		return d.names[name], m.ttl
	}
	return 0, 0
}

func (m *memFS) GetXattr(ctx context.Context, ino cfs.Ino, name string) ([]byte, error) {
	if err := m.enter(ctx, "getxattr "+name, ino); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return nil, err
	}
	if v, ok := n.xattrs[name]; ok {
		return v, nil
	}
	return nil, cfs.NoAttr
}

func (m *memFS) SetXattr(ctx context.Context, _ cfs.Cred, ino cfs.Ino, name string, value []byte, flags uint32) error {
	if err := m.enter(ctx, "setxattr "+name, ino); err != nil {
		return err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return err
	}
	_, ok := n.xattrs[name]
	switch {
	case flags&cfs.XattrCreate != 0 && ok:
		return cfs.Exists
	case flags&cfs.XattrReplace != 0 && !ok:
		return cfs.NoAttr
	}
	n.xattrs[name] = value
	if name == cfs.XattrACLAccess {
		n.modeOf(value)
		if flags&cfs.XattrKillSgid != 0 {
			n.attr.Mode &^= cfs.ModeSetgid
		}
	}
	n.changed(false)
	return nil
}

// modeOf gives a node the mode that an access ACL stands for.
func (n *memNode) modeOf(acl []byte) {
	for e := acl[4:]; len(e) >= 8; e = e[8:] {
		shift := map[byte]int{0x01: 6, 0x04: 3, 0x10: 3, 0x20: 0}
		if at, ok := shift[e[0]]; ok { // the mask comes after the group
			n.attr.Mode = n.attr.Mode&^(7<<at) | uint32(e[2])<<at
		}
	}
}

func (m *memFS) Tmpfile(ctx context.Context, cred cfs.Cred, dir cfs.Ino, mode uint32, exclusive bool, flags int) (file, cfs.Attr, error) {
	if err := m.enter(ctx, "tmpfile", dir); err != nil {
		return nil, cfs.Attr{}, err
	}
	defer m.mu.Unlock()
	n := m.add(cfs.ModeRegular|mode&^cred.Umask, cred.UID, cred.GID)
	n.attr.Nlink, n.sealed = 0, exclusive
	n.holders++
	return &memFile{m: m, n: n, flags: flags}, n.attr, nil
}

func (m *memFS) ListXattr(ctx context.Context, ino cfs.Ino) ([]string, error) {
	if err := m.enter(ctx, "listxattr", ino); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.xattrs)), nil
}

func (m *memFS) RemoveXattr(ctx context.Context, _ cfs.Cred, ino cfs.Ino, name string) error {
	if err := m.enter(ctx, "removexattr "+name, ino); err != nil {
		return err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return err
	}
	if _, ok := n.xattrs[name]; !ok {
		return cfs.NoAttr
	}
	delete(n.xattrs, name)
	n.changed(false)
	return nil
}

type memDir struct {
	m       *memFS
	n       *memNode
	entries []cfs.Dirent
}

func (d *memDir) Parent() cfs.Ino { return cfs.RootIno }

func (m *memFS) SyncDir(ctx context.Context, ino cfs.Ino) error {
	if err := m.enter(ctx, "syncdir", ino); err != nil {
		return err
	}
	m.mu.Unlock()
	return nil
}

func (d *memDir) Rewind() {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.entries = nil
	for _, name := range slices.Sorted(maps.Keys(d.n.names)) {
		a := d.m.nodes[d.n.names[name]].attr
		d.entries = append(d.entries, cfs.Dirent{Name: name, Ino: a.Ino, Mode: a.Mode, Attr: &a})
	}
}

func (m *memFS) OpenDir(ctx context.Context, ino cfs.Ino) (directory, error) {
	if err := m.enter(ctx, "opendir", ino); err != nil {
		return nil, err
	}
	n, err := m.dirNode(ino)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d := &memDir{m: m, n: n}
	d.Rewind()
	return d, nil
}

func (d *memDir) At(ctx context.Context, pos uint64) (cfs.Dirent, bool, error) {
	if err := d.m.enter(ctx, "readdir", 0); err != nil {
		return cfs.Dirent{}, false, err
	}
	defer d.m.mu.Unlock()
	if pos >= uint64(len(d.entries)) {
		return cfs.Dirent{}, false, nil
	}
	return d.entries[pos], true, nil
}

type memFile struct {
	m     *memFS
	n     *memNode
	flags int
}

func (m *memFS) Open(ctx context.Context, ino cfs.Ino, flags int) (file, error) {
	if err := m.enter(ctx, "open", ino); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n, err := m.node(ino)
	if err != nil {
		return nil, err
	}
	n.holders++
	return &memFile{m: m, n: n, flags: flags}, nil
}

func (m *memFS) OpenNew(a cfs.Attr, flags int) file {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[a.Ino]
	n.holders++
	return &memFile{m: m, n: n, flags: flags}
}

func (f *memFile) Read(ctx context.Context, p []byte, off uint64) (int, error) {
	if err := f.m.enter(ctx, "read", f.n.attr.Ino); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off >= f.n.attr.Size {
		return 0, nil
	}
	p = p[:min(uint64(len(p)), f.n.attr.Size-off)]
	for done := 0; done < len(p); {
		at := off + uint64(done)
		part := p[done:min(len(p), done+int(cfs.BlockSize-at%cfs.BlockSize))]
		if page := f.n.pages[at/cfs.BlockSize]; page != nil {
			copy(part, page[at%cfs.BlockSize:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p), nil
}

func (f *memFile) Write(ctx context.Context, p []byte, off uint64) (int, error) {
	if err := f.m.enter(ctx, "write", f.n.attr.Ino); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if f.flags&syscall.O_APPEND != 0 {
		off = f.n.attr.Size
	}
	for done := 0; done < len(p); {
		at := off + uint64(done)
		page := f.n.pages[at/cfs.BlockSize]
		if page == nil {
			page = new([cfs.BlockSize]byte)
			f.n.pages[at/cfs.BlockSize] = page
		}
		done += copy(page[at%cfs.BlockSize:], p[done:])
	}
	f.n.attr.Size = max(f.n.attr.Size, off+uint64(len(p)))
	f.n.changed(true)
	return len(p), nil
}

func (n *memNode) zero(off, end uint64) {
	for block, page := range n.pages {
		start := block * cfs.BlockSize
		from, to := max(off, start), min(end, start+cfs.BlockSize)
		switch {
		case from >= to:
		case to-from == cfs.BlockSize:
			delete(n.pages, block)
		default:
			clear(page[from-start : to-start])
		}
	}
}

func (n *memNode) truncate(size uint64) {
	if size < n.attr.Size {
		n.zero(size, (n.attr.Size+cfs.BlockSize)&^(cfs.BlockSize-1))
	}
	n.attr.Size = size
}

func (f *memFile) Allocate(ctx context.Context, mode uint32, off, n uint64) error {
	if err := f.m.enter(ctx, "allocate", f.n.attr.Ino); err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if mode&^(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		return cfs.Unsupported
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		f.n.zero(off, off+n)
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		f.n.attr.Size = max(f.n.attr.Size, off+n)
	}
	f.n.changed(true)
	return nil
}

func (f *memFile) Seek(ctx context.Context, off uint64, whence int) (uint64, error) {
	if err := f.m.enter(ctx, "seek", f.n.attr.Ino); err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if whence == unix.SEEK_HOLE {
		for f.n.pages[off/cfs.BlockSize] != nil {
			off = (off/cfs.BlockSize + 1) * cfs.BlockSize
		}
		return min(off, f.n.attr.Size), nil
	}
	for _, block := range slices.Sorted(maps.Keys(f.n.pages)) {
		if at := max(off, block*cfs.BlockSize); at < (block+1)*cfs.BlockSize && at < f.n.attr.Size {
			return at, nil
		}
	}
	return 0, cfs.E("lseek", cfs.IO, syscall.ENXIO)
}

func (f *memFile) Flush(ctx context.Context) error {
	err := f.m.enter(ctx, "flush", f.n.attr.Ino)
	if err == nil {
		f.m.mu.Unlock()
	}
	return err
}

func (f *memFile) Sync(ctx context.Context) error {
	err := f.m.enter(ctx, "sync", f.n.attr.Ino)
	if err == nil {
		f.m.mu.Unlock()
	}
	return err
}

func (f *memFile) Close(ctx context.Context) error {
	err := f.m.enter(ctx, "close", f.n.attr.Ino)
	if err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	f.n.holders--
	if f.n.holders == 0 && f.n.attr.Nlink == 0 {
		delete(f.m.nodes, f.n.attr.Ino)
	}
	return nil
}
