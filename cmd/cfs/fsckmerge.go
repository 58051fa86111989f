package main

import (
	"container/heap"
	"context"

	"github.com/claudefs/claudefs/cfs"
)

// item is an entry of one of the lists that the check merges: a row of the
// stripe table, or a shard of a device.
type item struct {
	stripe cfs.StripeID
	isRow  bool
	row    cfs.StripeInfo
	shard  shardSeen
}

// less orders the items of one list.
func (i *item) less(o *item) bool {
	if i.stripe != o.stripe {
		return i.stripe.Less(o.stripe)
	}
	return !i.isRow && i.shard.shard < o.shard.shard
}

// list is an ordered list that comes in pages, which are asked for ahead. Only
// one page waits, so a list holds two at most.
type list struct {
	name   string
	pages  chan []item
	err    error // of the producer; to be read after pages is closed
	page   []item
	at     int
	failed func(error) // what a failure means: not nil, the merge goes on without the list
}

// fetchPage gives the items after one, nil for the first ones.
type fetchPage func(ctx context.Context, after *item) (page []item, more bool, err error)

// startList begins to ask for the pages of a list.
func startList(ctx context.Context, name string, fetch fetchPage, failed func(error)) *list {
	l := &list{name: name, pages: make(chan []item), failed: failed}
	go func() {
		defer close(l.pages)
		var last *item
		for more := true; more; {
			var page []item
			page, more, l.err = fetch(ctx, last)
			if l.err == nil {
				l.err = inOrder(name, last, page, more)
			}
			if l.err != nil || len(page) == 0 {
				return
			}
			last = &page[len(page)-1]
			select {
			case l.pages <- page:
			case <-ctx.Done():
				l.err = cfs.E(name, cfs.Canceled, ctx.Err())
				return
			}
		}
	}()
	return l
}

// inOrder refuses a page that does not go on where the last one ended.
func inOrder(name string, last *item, page []item, more bool) error {
	if more && len(page) == 0 {
		return cfs.Errorf(name, cfs.BadRequest, "an empty page, and more to come")
	}
	for i := range page {
		if last != nil && !last.less(&page[i]) {
			return cfs.Errorf(name, cfs.BadRequest, "%v comes after %v", page[i].stripe, last.stripe)
		}
		last = &page[i]
	}
	return nil
}

// next moves on; false at the end. The item is then page[at].
func (l *list) next() (bool, error) {
	if l.at++; l.at < len(l.page) {
		return true, nil
	}
	page, ok := <-l.pages
	if l.page, l.at = page, 0; ok {
		return true, nil
	}
	if l.err != nil && l.failed != nil {
		l.failed(l.err)
		return false, nil
	}
	return false, l.err
}

// heads is a heap of lists by the items that they are at.
type heads []*list

// Len is part of heap.Interface, and so are the others.
func (h heads) Len() int { return len(h) }

// Less orders by stripe alone.
func (h heads) Less(i, j int) bool { return h[i].page[h[i].at].stripe.Less(h[j].page[h[j].at].stripe) }

// Swap is part of heap.Interface.
func (h heads) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is part of heap.Interface.
func (h *heads) Push(x any) { *h = append(*h, x.(*list)) }

// Pop is part of heap.Interface.
func (h *heads) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// merge goes through all lists in the order of stripes and calls visit with what
// there is of each. The sighting is visit's until it returns.
func merge(lists []*list, visit func(*sighting) error) error {
	var h heads
	for _, l := range lists {
		if ok, err := l.next(); err != nil {
			return err
		} else if ok {
			h = append(h, l)
		}
	}
	heap.Init(&h)
	var s sighting
	for len(h) > 0 {
		s = sighting{stripe: h[0].page[h[0].at].stripe, rows: s.rows[:0], shards: s.shards[:0]}
		for len(h) > 0 {
			i := &h[0].page[h[0].at]
			if i.stripe != s.stripe {
				break
			}
			if i.isRow {
				s.rows = append(s.rows, i.row)
			} else {
				s.shards = append(s.shards, i.shard)
			}
			ok, err := h[0].next()
			switch {
			case err != nil:
				return err
			case ok:
				heap.Fix(&h, 0)
			default:
				heap.Pop(&h)
			}
		}
		if err := visit(&s); err != nil {
			return err
		}
	}
	return nil
}
