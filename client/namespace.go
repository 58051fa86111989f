package client

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Lookup finds a name in a directory.
func (c *Client) Lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	before := c.cache.seq.Load()
	i, known := c.cachedName(dir, name)
	if known && i == 0 {
		return cfs.Attr{}, cfs.E("lookup", cfs.NotFound, nil)
	}
	if known {
		a, ok := c.cachedAttr(i)
		if ok && c.cache.seq.Load() != before { // the name may have gone before the attributes were found
			var still cfs.Ino
			still, ok = c.cachedName(dir, name)
			ok = ok && still == i
		}
		if ok {
			return a, nil
		}
	}
	return c.lookup(ctx, dir, name)
}

// cachedName is the inode behind a name (0: none), as far as leases say it.
func (c *Client) cachedName(dir cfs.Ino, name string) (cfs.Ino, bool) {
	i, until := c.keptName(dir, name)
	return i, c.leases.boot() < until
}

// keptName is the inode behind a name (0: none), and until when leases say it: 0 for not at all.
func (c *Client) keptName(dir cfs.Ino, name string) (i cfs.Ino, until int64) {
	st := c.leases.state.Load()
	owned := c.owns(dir)
	if !owned && c.behind.concerns(dir) {
		return 0, 0 // it is being given up: the leader is asked when it knows
	}
	if i, ok, changing := c.cache.name(dir, name, st.era); ok && !owned {
		return i, st.until
	} else if changing && !owned {
		return 0, 0
	}
	i, ok := c.cache.listed(dir, name, st.era, owned)
	switch {
	case ok && owned && c.owns(dir):
		return i, st.alive
	case !ok || owned:
		return i, 0
	}
	return i, st.until
}

// cachedAttr is an inode's attributes with what this client has written to it, as far as leases say them.
func (c *Client) cachedAttr(i cfs.Ino) (cfs.Attr, bool) {
	a, _, until := c.keptAttr(i)
	if c.leases.boot() >= until {
		return cfs.Attr{}, false
	}
	return a, true
}

// keptAttr is cachedAttr with the era of the leases and until when they say it: 0 for not at all.
func (c *Client) keptAttr(i cfs.Ino) (a cfs.Attr, era uint64, until int64) {
	st := c.leases.state.Load()
	n := c.inodes.find(i)
	if n != nil {
		if a, ok := n.ownAttr(); ok {
			return c.accesses.over(a), st.era, st.alive
		}
	}
	a, ok := c.cache.attr(i, st.era)
	if !ok || c.behind.concerns(i) {
		return cfs.Attr{}, 0, 0
	}
	if n != nil {
		a = n.overlay(a)
	}
	return c.accesses.over(a), st.era, st.until
}

// lookup asks the leader.
func (c *Client) lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	a, g, err := c.askLeased(ctx, &cfs.Query{Kind: cfs.QueryLookup, Dir: dir, Name: name})
	if a != nil && a.Dir.Ino != 0 {
		c.cache.putName(dir, name, a.Attr.Ino, a.Dir.Gen, g)
	}
	if err != nil {
		return cfs.Attr{}, err
	}
	c.cache.putAttr(&a.Attr, g)
	return c.overlay(a.Attr), nil
}

// GetAttr is an inode's attributes, with what this client has written to it.
func (c *Client) GetAttr(ctx context.Context, i cfs.Ino) (cfs.Attr, error) {
	if a, ok := c.cachedAttr(i); ok {
		return a, nil
	}
	a, g, err := c.askLeased(ctx, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: i})
	if errors.Is(err, cfs.Stale) {
		c.cache.forgetAttr(i)
	}
	if err != nil {
		return cfs.Attr{}, err
	}
	c.cache.putAttr(&a.Attr, g)
	return c.overlay(a.Attr), nil
}

// overlay adds what this client has written and not committed yet.
func (c *Client) overlay(a cfs.Attr) cfs.Attr {
	if n := c.find(a.Ino); n != nil {
		a = n.overlay(a)
	}
	return c.accesses.over(a)
}

// SetAttr changes the attributes that mask names. Those of a file that this client owns it may keep back,
// where a kernel has checked that the change is allowed.
func (c *Client) SetAttr(ctx context.Context, cred cfs.Cred, i cfs.Ino, mask cfs.SetMask, a cfs.Attr) (cfs.Attr, error) {
	op := cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: mask, Attr: a}
	if mask&(cfs.SetAtime|cfs.SetAtimeNow) != 0 {
		c.accesses.forget(i)
	}
	n := c.find(i)
	if n == nil {
		return c.resize(ctx, cred, op)
	}
	if !cred.Enforce {
		if out, ok := n.fold(mask, &a); ok {
			return out, nil
		}
	}
	// A later commit of earlier writes must not undo a new size or new times, nor one of earlier changes any.
	if mask&(cfs.SetSize|cfs.SetMtime|cfs.SetMtimeNow|cfs.SetCtime) == 0 && !n.folding() {
		return c.change(ctx, cred, op)
	}
	var out cfs.Attr
	err := n.settled(ctx, func() (err error) {
		out, err = c.resize(ctx, cred, op)
		if mask&cfs.SetSize != 0 {
			n.dropExtents()
		}
		return err
	})
	return out, err
}

// change carries out an operation on one inode and remembers its attributes.
func (c *Client) change(ctx context.Context, cred cfs.Cred, op cfs.Op) (cfs.Attr, error) {
	res, err := c.do(ctx, cred, op)
	if err != nil {
		return cfs.Attr{}, err
	}
	return c.overlay(res[0].Attr), nil
}

// Create makes an inode of mode's type: a file, directory, device, FIFO, socket,
// or a symbolic link to target. Without exclusive an existing regular file is
// returned as it is.
func (c *Client) Create(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, mode, rdev uint32, target string, exclusive bool) (cfs.Attr, error) {
	op := cfs.Op{Kind: cfs.OpCreate, Dir: dir, Name: name, Exclusive: exclusive, Flags: cred.Umask, Lease: c.mayOwn(mode),
		Attr: cfs.Attr{Mode: mode, UID: cred.UID, GID: cred.GID, Rdev: rdev}}
	if target != "" {
		op.Value = []byte(target)
	}
	if a, ok, err := c.createBehind(ctx, cred, op); ok || err != nil {
		return a, err
	}
	s := c.session.Load()
	g := c.grantOf(s)
	a, err := c.entryOp(ctx, cred, op)
	if err == nil {
		c.adopt(s, &a, dir, g, exclusive)
	}
	return a, err
}

// mayOwn reports that what is created with mode is to be owned.
func (c *Client) mayOwn(mode uint32) bool {
	t := mode & cfs.ModeType
	return (t == cfs.ModeRegular || t == cfs.ModeDir) && !c.shares.Load() && c.leases.state.Load().epoch != 0 && c.inodes.owned.Load() < maxOwned
}

// Link adds a name to an inode. The first name of one that Tmpfile made ends the
// session's hold of it.
func (c *Client) Link(ctx context.Context, cred cfs.Cred, i, dir cfs.Ino, name string) (cfs.Attr, error) {
	n := c.find(i)
	retained := n != nil && c.retain(n) // so that the last close of one without a name comes after
	if retained {
		defer func() { c.release(context.WithoutCancel(ctx), n) }()
	}
	nameless := retained && n.orphan.Load()
	if n != nil && n.folding() { // what is kept back is older than the link
		if err := n.flush(ctx); err != nil {
			return cfs.Attr{}, err
		}
	}
	a, err := c.entryOp(ctx, cred, cfs.Op{Kind: cfs.OpLink, Ino: i, Dir: dir, Name: name})
	if err == nil && nameless {
		n.appear()
	}
	return a, err
}

// Tmpfile makes and opens a file in a directory without a name (O_TMPFILE). It goes with its last close,
// unless Link has given it a name by then, which exclusive forbids.
func (c *Client) Tmpfile(ctx context.Context, cred cfs.Cred, dir cfs.Ino, mode uint32, exclusive bool, flags int) (*File, cfs.Attr, error) {
	res, err := c.do(ctx, cred, cfs.Op{Kind: cfs.OpCreate, Dir: dir, Hold: true, Exclusive: exclusive, Flags: cred.Umask,
		Attr: cfs.Attr{Mode: cfs.ModeRegular | mode&cfs.ModePerm, UID: cred.UID, GID: cred.GID}})
	if err != nil {
		return nil, cfs.Attr{}, err
	}
	f := c.OpenNew(res[0].Attr, flags)
	f.n.vanish(true)
	return f, res[0].Attr, nil
}

// truncateRetry is how long a truncation waits for an earlier one of the same file, which
// the cluster works off in the background.
const truncateRetry = 50 * time.Millisecond

// resize carries out a change of size, and waits while the file is Busy with an earlier one.
func (c *Client) resize(ctx context.Context, cred cfs.Cred, op cfs.Op) (cfs.Attr, error) {
	for {
		a, err := c.change(ctx, cred, op)
		if op.Mask&cfs.SetSize == 0 || !errors.Is(err, cfs.Busy) {
			return a, err
		}
		select {
		case <-time.After(truncateRetry):
		case <-ctx.Done():
			return a, ctxError("set size", ctx)
		}
	}
}

// entryOp carries out an operation that gives a directory a name.
func (c *Client) entryOp(ctx context.Context, cred cfs.Cred, op cfs.Op) (cfs.Attr, error) {
	res, err := c.do(ctx, cred, op)
	if err != nil {
		return cfs.Attr{}, err
	}
	if n := c.find(op.Dir); n != nil {
		n.touch()
	}
	return c.overlay(res[0].Attr), nil
}

// Unlink removes a name that is not a directory. An inode that this client has
// open stays until it is closed.
func (c *Client) Unlink(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	if ok, err := c.unlinkBehind(ctx, cred, dir, name); ok || err != nil {
		return err
	}
	return c.removal(ctx, cred, cfs.Op{Kind: cfs.OpUnlink, Dir: dir, Name: name})
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	return c.removal(ctx, cred, cfs.Op{Kind: cfs.OpRmdir, Dir: dir, Name: name})
}

func (c *Client) removal(ctx context.Context, cred cfs.Cred, op cfs.Op) error {
	_, err := c.doHolding(ctx, cred, op, op.Dir, op.Name)
	return err
}

// Rename moves a name; flags are RENAME_NOREPLACE or RENAME_EXCHANGE.
func (c *Client) Rename(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, newDir cfs.Ino, newName string, flags uint32) error {
	op := cfs.Op{Kind: cfs.OpRename, Dir: dir, Name: name, NewDir: newDir, NewName: newName, Flags: flags}
	_, err := c.doHolding(ctx, cred, op, newDir, newName)
	return err
}

// maxRetargets is how often an operation is tried for another inode that has
// come behind a name.
const maxRetargets = 8

// doHolding carries out an operation that may take the last name of what is
// behind dir's name. The session holds that inode if this client has it open; the
// operation says which inode that was decided for, and if it is another by now
// the leader is asked which.
func (c *Client) doHolding(ctx context.Context, cred cfs.Cred, op cfs.Op, dir cfs.Ino, name string) (*cfs.Result, error) {
	for try := 0; ; try++ {
		op.Ino, op.Hold = 0, false
		release := c.holdTarget(ctx, &op, dir, name, try > 0)
		res, err := c.do(ctx, cred, op)
		if err == nil {
			c.lostName(&res[0].Attr, op.Hold)
		}
		release()
		if errors.Is(err, cfs.Conflict) && try < maxRetargets {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &res[0], nil
	}
}

// lostName takes note of an inode that has lost a name.
func (c *Client) lostName(a *cfs.Attr, held bool) {
	if a.Ino == 0 {
		return
	}
	if n := c.find(a.Ino); n != nil && a.Nlink == 0 {
		n.vanish(held)
		c.inodes.settle(n)
	}
}

// cachedValue asks for a value of an inode, or takes it from the cache. Changes of attributes that are kept back
// may change it too: they go first.
func (c *Client) cachedValue(ctx context.Context, k valueKey) (cachedValue, error) {
	if n := c.find(k.ino); n != nil && n.folding() {
		if err := n.flush(ctx); err != nil {
			return cachedValue{}, err
		}
	}
	st := c.leases.state.Load()
	if v, ok := c.cache.value(k, st.era); ok && c.leases.boot() < st.until {
		if v.kind != cfs.KindOK {
			return v, cfs.E("query", v.kind, nil)
		}
		return v, nil
	}
	a, g, err := c.askLeased(ctx, &cfs.Query{Kind: k.kind, Ino: k.ino, Name: k.name})
	if a == nil {
		return cachedValue{}, err
	}
	v := cachedValue{kind: a.Kind, value: a.Value, names: a.Names, grant: g}
	if err == nil || errors.Is(err, cfs.NoAttr) {
		c.cache.putValue(k, v)
	}
	return v, err
}

// Readlink is a symbolic link's target.
func (c *Client) Readlink(ctx context.Context, i cfs.Ino) (string, error) {
	v, err := c.cachedValue(ctx, valueKey{ino: i, kind: cfs.QueryReadlink})
	return string(v.value), err
}

// GetXattr is the value of an extended attribute; NoAttr when there is none.
func (c *Client) GetXattr(ctx context.Context, i cfs.Ino, name string) ([]byte, error) {
	v, err := c.cachedValue(ctx, valueKey{ino: i, kind: cfs.QueryGetXattr, name: name})
	return bytes.Clone(v.value), err
}

// SetXattr sets an extended attribute; flags are XATTR_CREATE or XATTR_REPLACE.
func (c *Client) SetXattr(ctx context.Context, cred cfs.Cred, i cfs.Ino, name string, value []byte, flags uint32) error {
	return c.changeXattr(ctx, cred, cfs.Op{Kind: cfs.OpSetXattr, Ino: i, Name: name, Value: value, Flags: flags})
}

// RemoveXattr removes an extended attribute.
func (c *Client) RemoveXattr(ctx context.Context, cred cfs.Cred, i cfs.Ino, name string) error {
	return c.changeXattr(ctx, cred, cfs.Op{Kind: cfs.OpRemoveXattr, Ino: i, Name: name})
}

func (c *Client) changeXattr(ctx context.Context, cred cfs.Cred, op cfs.Op) error {
	if n := c.find(op.Ino); n != nil && n.folding() {
		if err := n.flush(ctx); err != nil {
			return err
		}
	}
	defer c.changesACL(op.Ino, op.Name)()
	_, err := c.change(ctx, cred, op)
	return err
}

// ListXattr lists the names of an inode's extended attributes.
func (c *Client) ListXattr(ctx context.Context, i cfs.Ino) ([]string, error) {
	v, err := c.cachedValue(ctx, valueKey{ino: i, kind: cfs.QueryListXattr})
	return slices.Clone(v.names), err
}

// Statfs is the space of the file system.
func (c *Client) Statfs(ctx context.Context) (cfs.Statfs, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryStatfs})
	if err != nil {
		return cfs.Statfs{}, err
	}
	return a.Statfs, nil
}
