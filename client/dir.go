package client

import (
	"context"
	"sync"

	"github.com/claudefs/claudefs/cfs"
)

// dirPage is the number of entries that a listing fetches at a time.
const dirPage = 1024

// Dir is an open directory. Entries are numbered from 0 in the order of their
// names; "." and ".." are not among them. Only one page is in memory.
type Dir struct {
	c      *Client
	ino    cfs.Ino
	mu     sync.Mutex
	starts []string // starts[p] is the name after which page p begins
	page   int      // of entries; -1 for none
	list   []cfs.Dirent
	more   bool
	parent cfs.Ino
}

// OpenDir opens a directory for listing.
func (c *Client) OpenDir(ctx context.Context, i cfs.Ino) (*Dir, error) {
	d := &Dir{c: c, ino: i, starts: []string{""}, page: -1}
	if err := d.load(ctx, 0); err != nil {
		return nil, err
	}
	return d, nil
}

// Parent is the directory's parent; the root's is itself.
func (d *Dir) Parent() cfs.Ino { return d.parent }

// Rewind makes the next read of position 0 see the directory as it is then.
func (d *Dir) Rewind() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.starts, d.page = d.starts[:1], -1
}

// At is the entry at a position, with its attributes while they are fresh; false
// after the last.
func (d *Dir) At(ctx context.Context, pos uint64) (cfs.Dirent, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := int(min(pos/dirPage, 1<<40))
	for d.page != want {
		next := want
		if want >= len(d.starts) {
			// Pages are found one after the other.
			if last := len(d.starts) - 1; d.page != last {
				next = last
			} else if !d.more {
				return cfs.Dirent{}, false, nil
			} else {
				d.starts = append(d.starts, d.list[len(d.list)-1].Name)
				next = last + 1
			}
		}
		if err := d.load(ctx, next); err != nil {
			return cfs.Dirent{}, false, err
		}
	}
	at := int(pos % dirPage)
	if at >= len(d.list) {
		return cfs.Dirent{}, false, nil
	}
	e := d.list[at]
	e.Attr = d.current(&e)
	return e, true, nil
}

// current is an entry's attributes if they are fresh: a reader may take its time
// over a page, and change what is in it meanwhile.
func (d *Dir) current(e *cfs.Dirent) *cfs.Attr {
	i, ok := d.c.cache.name(d.ino, e.Name)
	if !ok || i != e.Ino {
		return nil
	}
	a, ok := d.c.cache.attr(i)
	if !ok {
		return nil
	}
	a = d.c.overlay(a)
	return &a
}

func (d *Dir) load(ctx context.Context, page int) error {
	a, err := d.c.ask(ctx, &cfs.Query{Kind: cfs.QueryReadDir, Dir: d.ino, Name: d.starts[page], Limit: dirPage, WithAttrs: true})
	if err != nil {
		return err
	}
	// What follows goes on from this page's last name, which may be another than before.
	d.starts = d.starts[:page+1]
	d.page, d.list, d.more, d.parent = page, a.Entries, a.More && len(a.Entries) > 0, a.Dir.Ino
	for i := range d.list {
		e := &d.list[i]
		if e.Attr != nil {
			newest := d.c.cache.putAttr(*e.Attr)
			e.Attr = &newest
			d.c.cache.putName(d.ino, e.Name, e.Ino, a.Attr.Gen)
		}
	}
	return nil
}
