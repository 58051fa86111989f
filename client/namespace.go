package client

import (
	"context"
	"errors"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Lookup finds a name in a directory.
func (c *Client) Lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	if i, ok := c.cache.name(dir, name); ok {
		if i == 0 {
			return cfs.Attr{}, cfs.E("lookup", cfs.NotFound, nil)
		}
		if a, ok := c.cache.attr(i); ok {
			return c.overlay(a), nil
		}
	} else if c.cache.absent(dir, name) {
		return cfs.Attr{}, cfs.E("lookup", cfs.NotFound, nil)
	}
	return c.lookup(ctx, dir, name)
}

// lookup asks the leader.
func (c *Client) lookup(ctx context.Context, dir cfs.Ino, name string) (cfs.Attr, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryLookup, Dir: dir, Name: name})
	if a != nil && a.Dir.Ino != 0 {
		c.cache.putAttr(a.Dir)
		c.cache.putName(dir, name, a.Attr.Ino, a.Dir.Gen)
	}
	if err != nil {
		return cfs.Attr{}, err
	}
	return c.overlay(c.cache.putAttr(a.Attr)), nil
}

// GetAttr is an inode's attributes, with what this client has written to it.
func (c *Client) GetAttr(ctx context.Context, i cfs.Ino) (cfs.Attr, error) {
	a, err := c.attr(ctx, i)
	if err != nil {
		return cfs.Attr{}, err
	}
	return c.overlay(a), nil
}

// attr is an inode's attributes as the cluster has them.
func (c *Client) attr(ctx context.Context, i cfs.Ino) (cfs.Attr, error) {
	if a, ok := c.cache.attr(i); ok {
		return a, nil
	}
	return c.freshAttr(ctx, i)
}

// freshAttr asks the leader.
func (c *Client) freshAttr(ctx context.Context, i cfs.Ino) (cfs.Attr, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryGetAttr, Ino: i})
	if errors.Is(err, cfs.Stale) {
		c.cache.forgetAttr(i)
	}
	if err != nil {
		return cfs.Attr{}, err
	}
	return c.cache.putAttr(a.Attr), nil
}

// overlay adds what this client has written and not committed yet.
func (c *Client) overlay(a cfs.Attr) cfs.Attr {
	if n := c.find(a.Ino); n != nil {
		return n.overlay(a)
	}
	return a
}

// SetAttr changes the attributes that mask names.
func (c *Client) SetAttr(ctx context.Context, cred cfs.Cred, i cfs.Ino, mask cfs.SetMask, a cfs.Attr) (cfs.Attr, error) {
	op := cfs.Op{Kind: cfs.OpSetAttr, Ino: i, Mask: mask, Attr: a}
	// A later commit of earlier writes must not undo a new size or new times.
	if mask&(cfs.SetSize|cfs.SetMtime|cfs.SetMtimeNow|cfs.SetCtime) == 0 {
		return c.change(ctx, cred, op)
	}
	n := c.find(i)
	if n == nil {
		return c.resize(ctx, cred, op)
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
	return c.overlay(c.cache.putAttr(res[0].Attr)), nil
}

// Create makes an inode of mode's type: a file, directory, device, FIFO, socket,
// or a symbolic link to target. Without exclusive an existing regular file is
// returned as it is.
func (c *Client) Create(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, mode, rdev uint32, target string, exclusive bool) (cfs.Attr, error) {
	op := cfs.Op{Kind: cfs.OpCreate, Dir: dir, Name: name, Exclusive: exclusive, Flags: cred.Umask,
		Attr: cfs.Attr{Mode: mode, UID: cred.UID, GID: cred.GID, Rdev: rdev}}
	if target != "" {
		op.Value = []byte(target)
	}
	return c.entryOp(ctx, cred, op, dir, name)
}

// Link adds a name to an inode. The first name of one that Tmpfile made ends the
// session's hold of it.
func (c *Client) Link(ctx context.Context, cred cfs.Cred, i, dir cfs.Ino, name string) (cfs.Attr, error) {
	n := c.find(i)
	nameless := n != nil && n.orphan.Load()
	a, err := c.entryOp(ctx, cred, cfs.Op{Kind: cfs.OpLink, Ino: i, Dir: dir, Name: name}, dir, name)
	if err == nil && nameless {
		n.orphan.Store(false)
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
	f.n.orphan.Store(true)
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

// entryOp carries out an operation that gives dir the name.
func (c *Client) entryOp(ctx context.Context, cred cfs.Cred, op cfs.Op, dir cfs.Ino, name string) (cfs.Attr, error) {
	asked := time.Now()
	res, err := c.do(ctx, cred, op)
	if err != nil {
		return cfs.Attr{}, err
	}
	r := &res[0]
	c.cache.putAttr(r.Dir)
	c.cache.putName(dir, name, r.Attr.Ino, r.Dir.Gen)
	c.cache.changed(dir, r.DirWas, r.Dir.Gen, name, true, asked)
	if op.Kind == cfs.OpCreate && r.Attr.IsDir() {
		c.cache.made(r.Attr.Ino, r.Attr.Gen, asked)
	}
	return c.overlay(c.cache.putAttr(r.Attr)), nil
}

// Unlink removes a name that is not a directory. An inode that this client has
// open stays until it is closed.
func (c *Client) Unlink(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	return c.removal(ctx, cred, cfs.Op{Kind: cfs.OpUnlink, Dir: dir, Name: name})
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string) error {
	return c.removal(ctx, cred, cfs.Op{Kind: cfs.OpRmdir, Dir: dir, Name: name})
}

func (c *Client) removal(ctx context.Context, cred cfs.Cred, op cfs.Op) error {
	asked := time.Now()
	r, err := c.doHolding(ctx, cred, op, op.Dir, op.Name)
	if err != nil {
		return err
	}
	c.cache.putAttr(r.Dir)
	c.cache.putName(op.Dir, op.Name, 0, r.Dir.Gen)
	c.cache.changed(op.Dir, r.DirWas, r.Dir.Gen, op.Name, false, asked)
	return nil
}

// Rename moves a name; flags are RENAME_NOREPLACE or RENAME_EXCHANGE.
func (c *Client) Rename(ctx context.Context, cred cfs.Cred, dir cfs.Ino, name string, newDir cfs.Ino, newName string, flags uint32) error {
	op := cfs.Op{Kind: cfs.OpRename, Dir: dir, Name: name, NewDir: newDir, NewName: newName, Flags: flags}
	moved, _ := c.cache.name(dir, name)
	replaced, _ := c.cache.name(newDir, newName)
	r, err := c.doHolding(ctx, cred, op, newDir, newName)
	if err != nil {
		return err
	}
	c.cache.putAttr(r.Dir)
	to := r.Dir.Gen
	if r.NewDir.Ino != 0 {
		c.cache.putAttr(r.NewDir)
		to = r.NewDir.Gen
	}
	c.cache.forgetListing(dir)
	c.cache.forgetListing(newDir)
	// The reply does not say what has moved, and what the cache knew of it may be old.
	c.cache.forgetName(dir, name, r.Dir.Gen)
	c.cache.forgetName(newDir, newName, to)
	c.cache.forgetAttr(moved) // its change time is new
	c.cache.forgetAttr(replaced)
	return nil
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

// holdTarget sets op.Ino, and op.Hold where this client has that inode open, and
// keeps it open until the returned function is called.
func (c *Client) holdTarget(ctx context.Context, op *cfs.Op, dir cfs.Ino, name string, anew bool) (release func()) {
	none := func() {}
	if c.openCount() == 0 {
		return none
	}
	look := c.Lookup
	if anew {
		look = c.lookup
	}
	a, err := look(ctx, dir, name)
	if err != nil {
		return none // the operation itself will say why
	}
	op.Ino = a.Ino
	n := c.find(a.Ino)
	if n == nil || !c.retain(n) {
		return none
	}
	op.Hold = true
	return func() { c.release(context.WithoutCancel(ctx), n) }
}

// lostName takes note of an inode that has lost a name.
func (c *Client) lostName(a *cfs.Attr, held bool) {
	if a.Ino == 0 {
		return
	}
	c.cache.putAttr(*a)
	if a.Nlink > 0 {
		return
	}
	if n := c.find(a.Ino); n != nil && held {
		n.orphan.Store(true)
	}
}

// Readlink is a symbolic link's target.
func (c *Client) Readlink(ctx context.Context, i cfs.Ino) (string, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryReadlink, Ino: i})
	if err != nil {
		return "", err
	}
	return string(a.Value), nil
}

// GetXattr is the value of an extended attribute; NoAttr when there is none.
func (c *Client) GetXattr(ctx context.Context, i cfs.Ino, name string) ([]byte, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryGetXattr, Ino: i, Name: name})
	if err != nil {
		return nil, err
	}
	return a.Value, nil
}

// SetXattr sets an extended attribute; flags are XATTR_CREATE or XATTR_REPLACE.
func (c *Client) SetXattr(ctx context.Context, cred cfs.Cred, i cfs.Ino, name string, value []byte, flags uint32) error {
	_, err := c.change(ctx, cred, cfs.Op{Kind: cfs.OpSetXattr, Ino: i, Name: name, Value: value, Flags: flags})
	return err
}

// RemoveXattr removes an extended attribute.
func (c *Client) RemoveXattr(ctx context.Context, cred cfs.Cred, i cfs.Ino, name string) error {
	_, err := c.change(ctx, cred, cfs.Op{Kind: cfs.OpRemoveXattr, Ino: i, Name: name})
	return err
}

// ListXattr lists the names of an inode's extended attributes.
func (c *Client) ListXattr(ctx context.Context, i cfs.Ino) ([]string, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryListXattr, Ino: i})
	if err != nil {
		return nil, err
	}
	return a.Names, nil
}

// Statfs is the space of the file system.
func (c *Client) Statfs(ctx context.Context) (cfs.Statfs, error) {
	a, err := c.ask(ctx, &cfs.Query{Kind: cfs.QueryStatfs})
	if err != nil {
		return cfs.Statfs{}, err
	}
	return a.Statfs, nil
}
