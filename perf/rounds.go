package perf

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

// maxRounds bounds the rounds of a bench.
const maxRounds = 1000

// Progress is told what a bench is doing, for people who wait; nil for nobody.
type Progress func(text string)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// turn is a row and how one round of it is run.
type turn struct {
	row *Row
	run func(ctx context.Context) (Values, error)
}

// interleave runs so many rounds, in each of which every turn is taken once, in
// their order.
func interleave(ctx context.Context, rounds int, turns []turn, progress Progress) error {
	if err := checkRounds(rounds); err != nil {
		return err
	}
	for i := range rounds {
		for _, t := range turns {
			if ctx.Err() != nil {
				return cfs.E("measure", cfs.Canceled, context.Cause(ctx))
			}
			progress.say("round %d of %d: %s", i+1, rounds, t.row.Labels)
			v, err := t.run(ctx)
			if err != nil {
				return cfs.E(t.row.Labels.String(), cfs.KindOf(err), err)
			}
			t.row.Rounds = append(t.row.Rounds, v)
		}
	}
	return nil
}

func checkRounds(rounds int) error {
	if rounds < 1 || rounds > maxRounds {
		return cfs.Errorf("--rounds", cfs.Usage, "%d, want 1 to %d", rounds, maxRounds)
	}
	return nil
}

// inParallel runs n workers and returns the first error, at which the others stop.
func inParallel(n int, work func(worker int, stop *atomic.Bool) error) error {
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, n)
	for w := range n {
		wg.Go(func() {
			if errs[w] = work(w, &stop); errs[w] != nil {
				stop.Store(true)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
