package perf

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// settleQuiet is how long devices' figures must not change to be at rest: longer than
	// it takes until files are committed, are old enough to be written anew, and are looked at again.
	settleQuiet = 30 * time.Second
	settlePoll  = time.Second
)

// deviceFigures are sums over all devices of a cluster, of figures that change while
// there is still something to be done.
type deviceFigures struct {
	occupiedBytes, usedBytes, liveBytes, records uint64
}

func (f *deviceFigures) add(r *wirepb.InspectReply) {
	for _, d := range r.Devices {
		f.occupiedBytes += d.OccupiedBytes
		f.usedBytes += d.UsedBytes
		f.liveBytes += d.LiveBytes
		f.records += d.Records
	}
}

// inspect asks every server of the cluster of one of them for its devices.
func inspect(ctx context.Context, server string) (deviceFigures, error) {
	var sum deviceFigures
	status, err := askStatus(ctx, server)
	if err != nil {
		return sum, err
	}
	for _, node := range status.GetMap().GetNodes() {
		reply := &wirepb.InspectReply{}
		err := question(ctx, node.Addr, func(ctx context.Context, conn *wire.Conn) error {
			_, err := conn.Call(ctx, wire.OpInspect, &wirepb.Empty{}, nil, reply, nil)
			return err
		})
		if err != nil {
			return sum, err
		}
		sum.add(reply)
	}
	return sum, nil
}

// settle waits until the figures have not changed for quiet, at most for limit; rested
// says that they came to rest. It returns the last ones, and when they last changed.
func settle(ctx context.Context, quiet, every, limit time.Duration, figures func() (deviceFigures, error)) (last deviceFigures, took time.Duration, rested bool, err error) {
	begun := time.Now()
	if last, err = figures(); err != nil {
		return last, 0, false, err
	}
	changed := time.Now()
	for time.Since(begun) < limit {
		if err := pause(ctx, every); err != nil {
			return last, 0, false, err
		}
		now, err := figures()
		if err != nil {
			return last, 0, false, err
		}
		if now != last {
			last, changed = now, time.Now()
		} else if time.Since(changed) >= quiet {
			return last, changed.Sub(begun), true, nil
		}
	}
	return last, time.Since(begun), false, nil
}

// settled waits for the devices.
func (b *fileBench) settled(ctx context.Context, what string) (deviceFigures, time.Duration, error) {
	b.cfg.Progress.say("%s: waiting until devices are at rest, at most %s", what, time.Duration(b.cfg.Settle))
	f, took, rested, err := settle(ctx, b.cfg.quiet, min(settlePoll, b.cfg.quiet), time.Duration(b.cfg.Settle), func() (deviceFigures, error) { return inspect(ctx, b.server) })
	if err == nil && !rested {
		b.rep.note("%s: devices were not at rest after %s: the figures are those of that moment", what, time.Duration(b.cfg.Settle))
	}
	return f, took, err
}

// overwriteTurns writes a file, then as many bytes of it again at random, and lets the
// cluster rest. What the devices hold then is one round; reading it back, beside a
// fresh file, takes turns with the others.
func (b *fileBench) overwriteTurns(ctx context.Context) ([]turn, error) {
	size := int64(b.cfg.OverwriteBytes)
	before, err := inspect(ctx, b.server)
	if err == nil && before.occupiedBytes > 0 && b.cluster == nil {
		before, _, err = b.settled(ctx, "before "+ShapeOverwrite)
	}
	if err != nil {
		return nil, err
	}
	path, fresh := b.path(StateOverwritten), b.path(StateFresh)
	if _, err := writeFile(ctx, path, size, b.cfg.Seed+3); err != nil {
		return nil, err
	}
	b.cfg.Progress.say("overwriting %s of %s at random", b.cfg.OverwriteBytes, path)
	v, err := overwrite(ctx, path, size, b.cfg.Seed)
	if err != nil {
		return nil, err
	}
	after, took, err := b.settled(ctx, ShapeOverwrite)
	if err != nil {
		return nil, err
	}
	v[OccupiedBytes] = (float64(after.occupiedBytes) - float64(before.occupiedBytes)) / float64(size)
	v[LiveBytes] = (float64(after.liveBytes) - float64(before.liveBytes)) / float64(size)
	v[SettleSeconds] = took.Seconds()
	row := b.row(Labels{"op": ShapeOverwrite, "bs": sizeText(smallBytes)}, nil, IOPS)
	row.Rounds = []Values{v}

	if _, err := writeFile(ctx, fresh, size, b.cfg.Seed+4); err != nil {
		return nil, err
	}
	const op = "readback"
	labels := Labels{"op": op, "bs": sizeText(largeBytes)}
	base := b.row(labels.with("state", StateFresh), nil, BytesPerSecond)
	ours := b.row(labels.with("state", StateOverwritten), base, BytesPerSecond)
	return []turn{
		{base, func(ctx context.Context) (Values, error) { return b.coldRead(ctx, fresh) }},
		{ours, func(ctx context.Context) (Values, error) { return b.coldRead(ctx, path) }},
	}, nil
}

// overwrite writes as many bytes as the file has, 4 KiB at random places each, and
// fsyncs at the end.
func overwrite(ctx context.Context, path string, size int64, seed uint64) (v Values, err error) {
	op := "overwrite " + path
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	places := newPlaces(size, seed)
	begun := time.Now()
	for range places.blocks {
		if ctx.Err() != nil {
			return nil, cfs.E(op, cfs.Canceled, context.Cause(ctx))
		}
		if err := places.write(f); err != nil {
			return nil, cfs.E(op, cfs.KindOf(err), err)
		}
	}
	if err := f.Sync(); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	seconds := time.Since(begun).Seconds()
	return Values{IOPS: float64(places.blocks) / seconds, BytesPerSecond: float64(size) / seconds}, nil
}
