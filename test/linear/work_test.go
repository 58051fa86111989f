package linear

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

const (
	// clients is how many work at a time, each with a session and a cache of its own.
	clients = 5
	// writers is how many of them change as much as they ask; the others mostly ask.
	writers = 3
	// worldOps is how many requests a world takes before the next one: the search for an order
	// grows with what is open.
	worldOps = 120
	// opTimeout is when a client gives up and does not know.
	opTimeout = 3 * time.Second
	// pace is the mean pause of a client between two requests.
	pace = 12 * time.Millisecond
)

// world is a directory, two registers and a lock of their own.
type world struct {
	id    int
	dir   cfs.Ino
	mtime cfs.Ino // a file whose modification time is a register
	bytes cfs.Ino // a file whose bytes are one
	lock  cfs.Ino
	left  atomic.Int64

	mu   sync.Mutex // guards inos
	inos []tagged   // files that a client was told of
}

// tagged is a file and its tag.
type tagged struct {
	tag uint64
	ino cfs.Ino
}

// some is one of the files lately seen; false when there is none.
func (w *world) some(rng *rand.Rand) (tagged, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.inos) == 0 {
		return tagged{}, false
	}
	return w.inos[len(w.inos)-1-rng.IntN(min(len(w.inos), 6))], true
}

// saw takes note of which file a tag is of.
func (w *world) saw(a *cfs.Attr) {
	if a.Ino != 0 {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.inos = append(w.inos, tagged{uint64(a.UID), a.Ino})
	}
}

// work is the clients and what they were told.
type work struct {
	begun   time.Time
	values  atomic.Uint64
	fresh   func(ctx context.Context) (*world, error)
	mu      sync.Mutex // guards the fields below
	now     *world
	history []porcupine.Operation
	strange []error // answers that no state can give
	settled int     // requests whose outcome is known
}

// clock is the time since the work began, in nanoseconds, for call and return.
func (w *work) clock() int64 { return int64(time.Since(w.begun)) }

// world is the present one; used up, it is followed by another.
func (w *work) world(ctx context.Context) (*world, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now == nil || w.now.left.Add(-1) < 0 {
		next, err := w.fresh(ctx)
		if err != nil {
			return nil, err
		}
		w.now = next
	}
	return w.now, nil
}

// run lets one client work until ctx ends.
func (w *work) run(ctx context.Context, id int, c *client.Client, rng *rand.Rand) {
	for ctx.Err() == nil {
		wd, err := w.world(ctx)
		if err != nil {
			continue // the nemesis is at work: the next try may do
		}
		in, ino := w.choose(wd, uint64(id+1), rng)
		call := w.clock()
		out, err := w.do(ctx, c, wd, in, ino)
		w.record(id, in, out, call, err)
		time.Sleep(time.Duration(rng.Int64N(int64(2 * pace))))
	}
}

// choose is the next request, and the file that it links.
func (w *work) choose(wd *world, owner uint64, rng *rand.Rand) (in input, ino cfs.Ino) {
	in = input{World: wd.id, Part: "dir", Name: rng.IntN(names), To: rng.IntN(names)}
	k := rng.IntN(20)
	if owner > writers && rng.IntN(10) > 0 {
		k = 9 + rng.IntN(9)
	}
	switch {
	case k < 4:
		in.Act, in.Value, in.To = actCreate, w.values.Add(1), 0
	case k < 6:
		in.Act, in.To = actUnlink, 0
	case k < 7:
		file, ok := wd.some(rng)
		if !ok {
			return input{World: wd.id, Part: "dir", Act: actReadDir}, 0
		}
		in.Act, in.Value, in.Name, ino = actLink, file.tag, 0, file.ino
	case k < 9:
		in.Act = actRename
	case k < 12:
		in.Act, in.To = actLookup, 0
	case k < 13:
		in = input{World: wd.id, Part: "dir", Act: actReadDir}
	case k < 18:
		in = input{World: wd.id, Part: []string{"mtime", "bytes"}[rng.IntN(2)], Act: actGet}
		if rng.IntN(3) == 0 && owner <= writers {
			in.Act, in.Value = actSet, w.values.Add(1)
		}
	default:
		in = input{World: wd.id, Part: "lock", Act: []action{actLock, actUnlock}[rng.IntN(2)], Value: owner}
	}
	return in, ino
}

func (w *work) record(id int, in input, out output, call int64, strange error) {
	end := w.clock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if strange != nil {
		w.strange = append(w.strange, fmt.Errorf("%s: %w", describe(in, out), strange))
	}
	if out.Outcome == unknown {
		if in.Act == actLookup || in.Act == actReadDir || in.Act == actGet {
			return // it says nothing and changes nothing
		}
		end = math.MaxInt64
	} else {
		w.settled++
	}
	w.history = append(w.history, porcupine.Operation{ClientId: id, Input: in, Output: out, Call: call, Return: end})
}

func nameOf(i int) string { return string(rune('a' + i)) }

// do carries out a request. The error is one that no state of the directory explains.
func (w *work) do(ctx context.Context, c *client.Client, wd *world, in input, ino cfs.Ino) (output, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	switch in.Part {
	case "mtime":
		return w.doTime(ctx, c, wd, in)
	case "bytes":
		return w.doBytes(ctx, c, wd, in)
	case "lock":
		return w.doLock(ctx, c, wd, in)
	}
	var out output
	var err error
	switch in.Act {
	case actCreate:
		// The owner of a file is its tag: it is known before the cluster has answered.
		var a cfs.Attr
		a, err = c.Create(ctx, cfs.Cred{UID: uint32(in.Value)}, wd.dir, nameOf(in.Name), cfs.ModeRegular|0o600, 0, "", true)
		wd.saw(&a)
	case actUnlink:
		err = c.Unlink(ctx, cfs.Cred{}, wd.dir, nameOf(in.Name))
	case actLink:
		_, err = c.Link(ctx, cfs.Cred{}, ino, wd.dir, nameOf(in.To))
	case actRename:
		err = c.Rename(ctx, cfs.Cred{}, wd.dir, nameOf(in.Name), wd.dir, nameOf(in.To), 0)
	case actLookup:
		var a cfs.Attr
		if a, err = c.Lookup(ctx, wd.dir, nameOf(in.Name)); err == nil {
			out.Value = uint64(a.UID)
			wd.saw(&a)
		}
	case actReadDir:
		err = list(ctx, c, wd.dir, &out)
	}
	return judge(out, err)
}

// judge is an error as an outcome.
func judge(out output, err error) (output, error) {
	switch cfs.KindOf(err) {
	case cfs.KindOK:
		return out, nil
	case cfs.NotFound, cfs.Stale:
		return output{Outcome: missing}, nil
	case cfs.Exists:
		return output{Outcome: exists}, nil
	case cfs.Locked:
		return output{Outcome: busy}, nil
	case cfs.Timeout, cfs.Canceled, cfs.Closed, cfs.Unavailable, cfs.NoSession, cfs.NoLease, cfs.Overloaded:
		return output{Outcome: unknown}, nil
	}
	return output{Outcome: unknown}, err
}

// list reads the directory: its names and the tags behind them. A listing without
// attributes is asked for once more, name by name, only where it must be.
func list(ctx context.Context, c *client.Client, dir cfs.Ino, out *output) error {
	d, err := c.OpenDir(ctx, dir)
	if err != nil {
		return err
	}
	for pos := uint64(0); ; pos++ {
		e, more, err := d.At(ctx, pos)
		if err != nil || !more {
			return err
		}
		if e.Attr == nil {
			// Its attributes are not part of the listing: no atomic answer.
			return cfs.E("readdir", cfs.Unavailable, nil)
		}
		out.Listing[e.Name[0]-'a'] = uint64(e.Attr.UID)
	}
}

func (w *work) doTime(ctx context.Context, c *client.Client, wd *world, in input) (output, error) {
	if in.Act == actSet {
		_, err := c.SetAttr(ctx, cfs.Cred{}, wd.mtime, cfs.SetMtime, cfs.Attr{MtimeNS: int64(in.Value)})
		return judge(output{}, err)
	}
	a, err := c.GetAttr(ctx, wd.mtime)
	return judge(output{Value: uint64(a.MtimeNS)}, err)
}

func (w *work) doBytes(ctx context.Context, c *client.Client, wd *world, in input) (output, error) {
	var out output
	f, err := c.Open(ctx, wd.bytes, unix.O_RDWR)
	if err != nil {
		return judge(out, err)
	}
	var b [8]byte
	if in.Act == actSet {
		put64(b[:], in.Value)
		if _, err = f.Write(ctx, b[:], 0); err == nil {
			err = f.Sync(ctx)
		}
	} else {
		var n int
		if n, err = f.Read(ctx, b[:], 0); err == nil && n != 0 && n != len(b) {
			err = cfs.Errorf("read", cfs.Corrupt, "%d bytes", n)
		}
		out.Value = get64(b[:])
	}
	if cerr := f.Close(ctx); err == nil && in.Act == actSet {
		err = cerr
	}
	return judge(out, err)
}

func put64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

func get64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}
