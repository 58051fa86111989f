package fsm

import "github.com/claudefs/claudefs/cfs"

// Bounds of the inode numbers that sessions get ahead.
const (
	// MaxInoGrant bounds the numbers of one grant.
	MaxInoGrant = 1 << 20
	// MaxInoRanges bounds the grants that a session has not used up.
	MaxInoRanges = 4
)

// inoRange is inode numbers that a session may use: [first, end).
type inoRange struct{ first, end cfs.Ino }

// grantInos gives the session numbers that nobody else gets.
func (t *tx) grantInos(op *cfs.Op, res *cfs.Result) cfs.Kind {
	if op.Index == 0 || op.Index > MaxInoGrant {
		return cfs.Invalid
	}
	have, _ := load(t, inosKey(t.sess), decodeInos)
	if len(have) >= MaxInoRanges {
		return cfs.Overloaded
	}
	counter := t.mark(markNextIno)
	t.setMark(markNextIno, counter+op.Index)
	number := func(c uint64) cfs.Ino { return cfs.MakeIno(op.Dir.Site(), op.Dir.Partition(), c) }
	r := inoRange{number(counter), number(counter + op.Index)}
	t.set(inosKey(t.sess), encodeInos(append(have, r)))
	res.Attr.Ino = r.first
	return cfs.KindOK
}

// takeIno uses a number that the session was given, and with it those below: it uses them in rising
// order, so that a number is used once at most whatever becomes of its inode.
func (t *tx) takeIno(i cfs.Ino) bool {
	have, _ := load(t, inosKey(t.sess), decodeInos)
	for len(have) > 0 && have[0].end <= i {
		have = have[1:]
	}
	if len(have) == 0 || i < have[0].first {
		return false
	}
	if have[0].first = i + 1; have[0].first == have[0].end {
		have = have[1:]
	}
	if len(have) == 0 {
		t.del(inosKey(t.sess))
	} else {
		t.set(inosKey(t.sess), encodeInos(have))
	}
	return true
}

func encodeInos(rs []inoRange) []byte {
	e := newEnc(1 + 16*len(rs))
	e.u8(uint8(len(rs)))
	for _, r := range rs {
		e.u64(uint64(r.first))
		e.u64(uint64(r.end))
	}
	return e.b
}

// decodeInos takes ranges that rise and have something in them.
func decodeInos(b []byte) ([]inoRange, bool) {
	d := newDec(b)
	n := int(d.u8())
	if n == 0 || n > MaxInoRanges {
		return nil, false
	}
	rs := make([]inoRange, n)
	last, good := cfs.Ino(0), true
	for i := range rs {
		rs[i] = inoRange{cfs.Ino(d.u64()), cfs.Ino(d.u64())}
		good = good && rs[i].first >= last && rs[i].first < rs[i].end
		last = rs[i].end
	}
	return rs, good && d.ok()
}
