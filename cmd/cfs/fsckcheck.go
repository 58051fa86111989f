package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxSuspects bounds the stripes that wait to be looked at again.
	maxSuspects = 1024
	// settleRounds is how often a stripe must look wrong before it is a fault.
	settleRounds = 4
	// maxExamples bounds what a report says of one kind of fault.
	maxExamples = 20
	// maxFaults is how many faults end a check: there is no more to be learned.
	maxFaults = 10000
)

// evidence is where a check looks again: the cluster as it is now.
type evidence interface {
	// layout is the newest map.
	layout(ctx context.Context) (*layout, error)
	// rows is the stripe in each of some groups, as far as it is there.
	rows(ctx context.Context, id cfs.StripeID, groups []cfs.PGID) ([]cfs.StripeInfo, error)
	// shards is what one device has of a stripe.
	shards(ctx context.Context, d cfs.DeviceID, id cfs.StripeID) ([]shardSeen, error)
	// fates says of stripes what becomes of them.
	fates(ctx context.Context, refs []cfs.StripeRef) ([]cfs.Fate, error)
}

// faultDoc is a kind of fault in a report.
type faultDoc struct {
	Kind     faultKind `json:"kind"`
	Count    uint64    `json:"count"`
	Examples []string  `json:"examples"` // at most maxExamples
}

// fsckDoc is the report of a check. Sizes are bytes.
type fsckDoc struct {
	Clean     bool       `json:"clean"`
	Complete  bool       `json:"complete"` // false: ended early, with so many faults
	Passes    int        `json:"passes"`
	Inodes    uint64     `json:"inodes"`
	Extents   uint64     `json:"extents"`
	Stripes   uint64     `json:"stripes"`
	DataBytes uint64     `json:"data_bytes"` // of stripes
	Shards    uint64     `json:"shards"`
	Pending   uint64     `json:"pending_shards"` // of stripes that may still be committed
	Devices   int        `json:"devices"`        // whose shards were listed
	Replicas  int        `json:"replicas"`       // whose tables were compared
	Reduced   reducedDoc `json:"reduced"`
	Faults    []faultDoc `json:"faults"`
	Notes     []string   `json:"notes"` // what was not looked at, and need not be
}

// reducedDoc is the stripes that can be read and lack shards, on devices that
// are known to be gone or are being filled.
type reducedDoc struct {
	Stripes   uint64 `json:"stripes"`
	DataBytes uint64 `json:"data_bytes"`
	MostGone  int    `json:"most_gone"` // shards that the worst of them lacks
}

// checker is one pass. One goroutine calls visit and settle.
type checker struct {
	now    *layout // the newest map; listed are the devices whose lists are merged
	ask    evidence
	settle time.Duration // the pause between looks

	suspects []*sighting

	mu    sync.Mutex // of what follows
	doc   fsckDoc
	found uint64 // faults
}

// add counts faults of a kind.
func (c *checker) add(kind faultKind, n uint64, examples ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.doc.Faults, func(f faultDoc) bool { return f.Kind == kind })
	if i < 0 {
		i = len(c.doc.Faults)
		c.doc.Faults = append(c.doc.Faults, faultDoc{Kind: kind})
	}
	f := &c.doc.Faults[i]
	f.Count += n
	c.found += n
	f.Examples = append(f.Examples, examples[:min(len(examples), maxExamples-len(f.Examples))]...)
}

// full reports that there are faults enough.
func (c *checker) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found >= maxFaults
}

// record takes what a sighting came to into the report.
func (c *checker) record(s *sighting, v *verdict) {
	for _, f := range v.faults {
		c.add(f.kind, 1, f.text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doc.Shards += uint64(len(s.shards))
	c.doc.Pending += uint64(v.pending)
	for i := range s.rows {
		c.doc.Stripes++
		c.doc.DataBytes += uint64(s.rows[i].Len)
	}
	if v.absent > 0 && len(v.faults) == 0 {
		r := &c.doc.Reduced
		r.Stripes, r.DataBytes, r.MostGone = r.Stripes+1, r.DataBytes+uint64(s.rows[0].Len), max(r.MostGone, v.absent)
	}
}

// visit judges a stripe; what looks wrong is looked at again later, in batches.
func (c *checker) visit(ctx context.Context, s *sighting) error {
	v := c.now.judge(s)
	if len(v.faults) == 0 && !v.unclear {
		c.record(s, &v)
		return nil
	}
	c.suspects = append(c.suspects, &sighting{stripe: s.stripe, rows: slices.Clone(s.rows), shards: slices.Clone(s.shards)})
	if len(c.suspects) < maxSuspects {
		return nil
	}
	return c.confirm(ctx)
}

// confirm looks at the suspects again, several times with pauses, since the
// cluster is alive. What looks wrong each time is wrong.
func (c *checker) confirm(ctx context.Context) error {
	for round := 1; len(c.suspects) > 0; round++ {
		if round > 1 {
			if err := sleep(ctx, time.Duration(round-1)*c.settle); err != nil {
				return err
			}
		}
		verdicts, err := c.lookAgain(ctx)
		if err != nil {
			return err
		}
		left := c.suspects[:0]
		for i, s := range c.suspects {
			v := &verdicts[i]
			switch wrong := len(v.faults) > 0 || v.unclear; {
			case wrong && round < settleRounds:
				left = append(left, s)
			case v.unclear:
				c.add(faultUnchecked, 1, "stripe "+s.stripe.String()+" changes all the time")
			default:
				c.record(s, v)
			}
		}
		clear(c.suspects[len(left):])
		c.suspects = left
	}
	return nil
}

// lookAgain sees all suspects anew and judges them. The order matters: what is in
// the table before and after a device was looked at was there meanwhile.
func (c *checker) lookAgain(ctx context.Context) ([]verdict, error) {
	before, err := c.ask.layout(ctx)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(c.suspects))
	changed := make([]bool, len(c.suspects))
	each(len(c.suspects), func(i int) { changed[i], errs[i] = see(ctx, c.ask, before, c.suspects[i]) })
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return nil, errs[i]
	}
	if err := c.askFates(ctx); err != nil {
		return nil, err
	}
	after, err := c.ask.layout(ctx)
	if err != nil {
		return nil, err
	}
	for d := range after.listed { // who came back meanwhile has not been asked
		after.listed[d] = after.listed[d] && before.listed[d]
	}
	c.now = &layout{groups: after.groups, states: after.states, listed: c.now.listed}
	verdicts := make([]verdict, len(c.suspects))
	for i, s := range c.suspects {
		verdicts[i] = after.judge(s)
		for _, r := range s.rows {
			was, is := before.groups[r.PG], after.groups[r.PG]
			changed[i] = changed[i] || (was == nil) != (is == nil) || was != nil && was.Epoch != is.Epoch
		}
		verdicts[i].unclear = verdicts[i].unclear || changed[i]
	}
	return verdicts, nil
}

// see looks at one stripe anew, and reports whether its rows changed meanwhile.
func see(ctx context.Context, ask evidence, l *layout, s *sighting) (changed bool, err error) {
	var groups []cfs.PGID
	var devices []cfs.DeviceID
	for _, r := range s.rows {
		groups = append(groups, r.PG)
	}
	for _, h := range s.shards {
		groups, devices = append(groups, h.pg), append(devices, h.device)
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	rows, err := ask.rows(ctx, s.stripe, groups)
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if g := l.groups[r.PG]; g != nil {
			for _, slot := range g.Slots {
				devices = append(devices, slot.Device, slot.Source)
			}
		}
	}
	slices.Sort(devices)
	s.shards = nil
	for _, d := range slices.Compact(devices) {
		if !l.listed[d] {
			continue
		}
		shards, err := ask.shards(ctx, d, s.stripe)
		if err != nil {
			return false, err
		}
		s.shards = append(s.shards, shards...)
	}
	s.rows, err = ask.rows(ctx, s.stripe, groups)
	return !slices.EqualFunc(rows, s.rows, func(a, b cfs.StripeInfo) bool { return a.StripeRef == b.StripeRef && a.Len == b.Len }), err
}

// askFates asks what becomes of the suspects that have shards and no row.
func (c *checker) askFates(ctx context.Context) error {
	var refs []cfs.StripeRef
	var of []*sighting
	flush := func() error {
		if len(refs) == 0 {
			return nil
		}
		fates, err := c.ask.fates(ctx, refs)
		if err != nil {
			return err
		}
		if len(fates) != len(refs) {
			return cfs.Errorf("fsck", cfs.BadRequest, "%d fates for %d stripes", len(fates), len(refs))
		}
		for i, s := range of {
			s.fates[refs[i].PG] = fates[i]
		}
		refs, of = refs[:0], of[:0]
		return nil
	}
	for _, s := range c.suspects {
		s.fates = map[cfs.PGID]cfs.Fate{}
		for _, h := range s.shards {
			if _, asked := s.fates[h.pg]; asked || len(s.rows) > 0 {
				continue
			}
			s.fates[h.pg] = 0
			refs, of = append(refs, cfs.StripeRef{PG: h.pg, Stripe: s.stripe}), append(of, s)
			if len(refs) == cfs.MaxFates {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// finish puts the report in order.
func (c *checker) finish() {
	var ordered []faultDoc
	for _, k := range faultKinds {
		if i := slices.IndexFunc(c.doc.Faults, func(f faultDoc) bool { return f.Kind == k.kind }); i >= 0 {
			ordered = append(ordered, c.doc.Faults[i])
		}
	}
	c.doc.Faults = append([]faultDoc{}, ordered...)
	c.doc.Clean = len(ordered) == 0 && c.doc.Complete
}
