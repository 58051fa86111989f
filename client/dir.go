package client

import (
	"context"
	"sync"

	"github.com/claudefs/claudefs/cfs"
)

// dirPage is the number of entries that a listing fetches at a time.
const dirPage = 1024

// Dir is an open directory. Entries are numbered from 0 in the order of their
// names; "." and ".." are not among them. Only one page is in memory, and what
// may become a listing of the cache.
type Dir struct {
	c      *Client
	ino    cfs.Ino
	mu     sync.Mutex
	starts []string // starts[p] is the name after which page p begins
	page   int      // of entries; -1 for none
	list   []cfs.Dirent
	more   bool
	parent cfs.Ino
	grant  grant        // of the page
	local  []cfs.Dirent // all of it, where leases say it; else nil
	read   map[string]listed
	first  grant // of the first page, while all that were read are in read
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
	d.starts, d.page, d.local = d.starts[:1], -1, nil
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

// current is an entry's attributes if they are certain: a reader may take its time over a page, and change
// what is in it meanwhile.
func (d *Dir) current(e *cfs.Dirent) *cfs.Attr {
	if !d.c.cache.listCurrent(d.ino, d.grant, d.c.leases.state.Load().era) {
		if i, ok := d.c.cachedName(d.ino, e.Name); !ok || i != e.Ino {
			return nil
		}
	}
	a, ok := d.c.cachedAttr(e.Ino)
	if !ok {
		return nil
	}
	return &a
}

func (d *Dir) load(ctx context.Context, page int) error {
	if page == 0 {
		if d.local = nil; d.loadLocal() {
			return nil
		}
	}
	if d.local != nil {
		at := page * dirPage
		end := min(at+dirPage, len(d.local))
		d.starts = d.starts[:page+1]
		d.page, d.list, d.more = page, d.local[min(at, end):end], end < len(d.local)
		return nil
	}
	a, g, err := d.c.askLeased(ctx, &cfs.Query{Kind: cfs.QueryReadDir, Dir: d.ino, Name: d.starts[page], Limit: dirPage, WithAttrs: true})
	if err != nil {
		return err
	}
	// What follows goes on from this page's last name, which may be another than before.
	d.starts = d.starts[:page+1]
	d.page, d.list, d.more, d.parent, d.grant = page, a.Entries, a.More && len(a.Entries) > 0, a.Dir.Ino, g
	for i := range d.list {
		if a := d.list[i].Attr; a != nil {
			d.c.cache.putAttr(a, g)
		}
	}
	d.gather(a.Attr.Gen)
	return nil
}

// loadLocal takes the listing from the cache, if it has it.
func (d *Dir) loadLocal() bool {
	st := d.c.leases.state.Load()
	owned := d.c.owns(d.ino)
	parent, all, ok := d.c.cache.entries(d.ino, st.era, owned)
	until := st.until
	if owned {
		until = st.alive
	}
	if !ok || d.c.leases.boot() >= until || owned && !d.c.owns(d.ino) {
		return false
	}
	end := min(dirPage, len(all))
	d.parent, d.local, d.starts, d.grant = parent, all, d.starts[:1], grant{}
	d.page, d.list, d.more = 0, all[:end], end < len(all)
	return true
}

// gather makes the pages a listing of the cache, if they come one after the other under one lease.
func (d *Dir) gather(gen uint64) {
	if d.page == 0 {
		d.read, d.first = map[string]listed{}, d.grant
	} else if d.grant.era != d.first.era || len(d.read) != d.page*dirPage {
		d.read, d.first = nil, grant{}
	}
	if d.first.era == 0 || len(d.read) > maxListed {
		d.read = nil
		return
	}
	for i := range d.list {
		d.read[d.list[i].Name] = listed{d.list[i].Ino, d.list[i].Mode & cfs.ModeType, gen}
	}
	if !d.more {
		d.c.cache.keepListing(d.ino, d.parent, d.read, d.first)
		d.read = nil
	}
}
