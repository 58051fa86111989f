package fsm

import (
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// recordVersion starts every value. A record of another version halts the replica.
const recordVersion = 2

// enc appends fixed little-endian fields.
type enc struct{ b []byte }

func newEnc(size int) *enc {
	e := &enc{b: make([]byte, 0, size+1)}
	e.u8(recordVersion)
	return e
}

func (e *enc) u8(v uint8)   { e.b = append(e.b, v) }
func (e *enc) u16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }
func (e *enc) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *enc) u64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *enc) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}
func (e *enc) bytes(v []byte) {
	e.u32(uint32(len(v)))
	e.b = append(e.b, v...)
}

// dec takes fields off a record; bad sticks once a field is missing.
type dec struct {
	b   []byte
	bad bool
}

func newDec(b []byte) *dec {
	d := &dec{b: b}
	if d.u8() != recordVersion {
		d.bad = true
	}
	return d
}

func (d *dec) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return make([]byte, min(n, 8))
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *dec) u8() uint8   { return d.take(1)[0] }
func (d *dec) u16() uint16 { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *dec) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *dec) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

// bool takes 0 or 1: a record has one form only.
func (d *dec) bool() bool {
	v := d.u8()
	if v > 1 {
		d.bad = true
	}
	return v == 1
}

func (d *dec) bytes() []byte {
	n := d.u32()
	if d.bad || uint64(n) > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	return append([]byte(nil), d.take(int(n))...)
}

// ok reports that the record had every field and nothing after them.
func (d *dec) ok() bool { return !d.bad && len(d.b) == 0 }

// inode is the state of an inode: what stat tells, less what is derived.
type inode struct {
	cfs.Attr
	parent cfs.Ino // of a directory
	stored uint64  // bytes that extent rows cover, dead ones above the cut included; Blocks follows from it

	flags uint8  // hasACL and so on
	high  uint32 // map of the rows at and above the cut
	cut   uint64 // where a truncation that is still at work cuts the map; 0 for none
}

// isCut in the flags of a record says that high and cut follow.
const isCut uint8 = 1 << 7

func (e *enc) attr(a *cfs.Attr) {
	e.u64(uint64(a.Ino))
	e.u32(a.Mode)
	e.u32(a.Nlink)
	e.u32(a.UID)
	e.u32(a.GID)
	e.u32(a.Rdev)
	e.u64(a.Size)
	e.u64(a.Blocks)
	e.u32(a.Map)
	e.u64(a.Gen)
	e.u64(uint64(a.AtimeNS))
	e.u64(uint64(a.MtimeNS))
	e.u64(uint64(a.CtimeNS))
	e.u64(uint64(a.BtimeNS))
	e.u64(uint64(a.Owner))
}

func (d *dec) attr() (a cfs.Attr) {
	a.Ino = cfs.Ino(d.u64())
	a.Mode = d.u32()
	a.Nlink = d.u32()
	a.UID = d.u32()
	a.GID = d.u32()
	a.Rdev = d.u32()
	a.Size = d.u64()
	a.Blocks = d.u64()
	a.Map = d.u32()
	a.Gen = d.u64()
	a.AtimeNS = int64(d.u64())
	a.MtimeNS = int64(d.u64())
	a.CtimeNS = int64(d.u64())
	a.BtimeNS = int64(d.u64())
	a.Owner = cfs.SessionID(d.u64())
	return a
}

// blocks is what Attr.Blocks follows from: 512-byte units of what extent rows cover.
func (i *inode) blocks() uint64 { return (i.stored + 511) / 512 }

func encodeInode(i *inode) []byte { return newEnc(112).inode(i) }

func (e *enc) inode(i *inode) []byte {
	i.Blocks = i.blocks()
	e.attr(&i.Attr)
	e.u64(uint64(i.parent))
	e.u64(i.stored)
	switch {
	case i.cut > 0:
		e.u8(i.flags | isCut)
		e.u32(i.high)
		e.u64(i.cut)
	case i.flags != 0:
		e.u8(i.flags)
	}
	return e.b
}

func decodeInode(b []byte) (*inode, bool) {
	d := newDec(b)
	i := &inode{Attr: d.attr(), parent: cfs.Ino(d.u64()), stored: d.u64()}
	if len(d.b) > 0 { // the rare
		flags := d.u8()
		if i.flags = flags &^ isCut; flags&isCut != 0 {
			i.high, i.cut = d.u32(), d.u64()
			d.bad = d.bad || i.cut == 0
		}
		d.bad = d.bad || flags == 0 || i.flags > inodeFlags
	}
	return i, d.ok() && i.Blocks == i.blocks()
}

// dirent is the value of a directory entry.
type dirent struct {
	ino  cfs.Ino
	mode uint32 // type bits
}

func encodeDirent(v dirent) []byte { return newEnc(12).dirent(v) }

func (e *enc) dirent(v dirent) []byte {
	e.u64(uint64(v.ino))
	e.u32(v.mode)
	return e.b
}

func decodeDirent(b []byte) (dirent, bool) {
	d := newDec(b)
	v := dirent{cfs.Ino(d.u64()), d.u32()}
	return v, d.ok()
}

// A symbolic link's target and an extended attribute are their bytes.
func encodeBytes(v []byte) []byte { return append([]byte{recordVersion}, v...) }

func decodeBytes(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, false
	}
	return append([]byte(nil), b[1:]...), true
}

// An extent's offset follows from its key (its end) and its length.
func encodeExtent(x *cfs.Extent) []byte {
	e := newEnc(48 + len(x.Inline))
	e.u8(uint8(x.Kind))
	e.u64(x.Len)
	switch x.Kind {
	case cfs.ExtentInline:
		e.b = append(e.b, x.Inline...)
	case cfs.ExtentStripe:
		e.u32(uint32(x.PG))
		e.u64(uint64(x.Stripe.Session))
		e.u64(x.Stripe.Counter)
		e.u32(x.StripeOff)
		e.u32(x.StripeLen)
	}
	return e.b
}

func decodeExtent(end uint64, b []byte) (cfs.Extent, bool) {
	x, ok := extentRecord(end, b)
	x.Inline = append([]byte(nil), x.Inline...)
	return x, ok
}

// extentRecord is decodeExtent without a copy: inline bytes lie in b.
func extentRecord(end uint64, b []byte) (cfs.Extent, bool) {
	d := newDec(b)
	x := cfs.Extent{Kind: cfs.ExtentKind(d.u8()), Len: d.u64()}
	if d.bad || x.Len == 0 || x.Len > end {
		return x, false
	}
	x.Off = end - x.Len
	switch x.Kind {
	case cfs.ExtentInline:
		if uint64(len(d.b)) != x.Len {
			return x, false
		}
		x.Inline = d.take(len(d.b))
	case cfs.ExtentStripe:
		x.PG = cfs.PGID(d.u32())
		x.Stripe = cfs.StripeID{Session: cfs.SessionID(d.u64()), Counter: d.u64()}
		x.StripeOff = d.u32()
		x.StripeLen = d.u32()
	case cfs.ExtentUnwritten:
	default:
		return x, false
	}
	return x, d.ok()
}

// stripe is a row of the stripe table.
type stripe struct {
	live  uint64 // bytes that extents reference, a byte that two reference counted twice
	refs  uint32 // extent rows
	len   uint32 // data bytes of the stripe
	keyID uint32 // of the key that its bytes are encrypted with, 0 for none
}

func encodeStripe(s *stripe) []byte {
	e := newEnc(20)
	e.u64(s.live)
	e.u32(s.refs)
	e.u32(s.len)
	e.u32(s.keyID)
	return e.b
}

func decodeStripe(b []byte) (*stripe, bool) {
	d := newDec(b)
	s := &stripe{d.u64(), d.u32(), d.u32(), d.u32()}
	return s, d.ok()
}

// session is the replicated part of a session.
type session struct {
	floor    uint64 // stripe ids below it are settled
	lowWater uint64 // replies below it are forgotten
	highest  uint64 // sequence applied: above it there is no reply to look for
	openedNS int64
	name     string
}

func encodeSession(s *session) []byte { return newEnc(40 + len(s.name)).session(s) }

func (e *enc) session(s *session) []byte {
	e.u64(s.floor)
	e.u64(s.lowWater)
	e.u64(s.highest)
	e.u64(uint64(s.openedNS))
	e.u32(uint32(len(s.name)))
	e.b = append(e.b, s.name...)
	return e.b
}

func decodeSession(b []byte) (*session, bool) {
	d := newDec(b)
	s := &session{floor: d.u64(), lowWater: d.u64(), highest: d.u64(), openedNS: int64(d.u64()), name: string(d.bytes())}
	return s, d.ok()
}

func encodeNode(n *cfs.Node) []byte {
	e := newEnc(16 + len(n.Addr))
	e.u16(uint16(n.ID))
	e.u8(uint8(n.State))
	e.bool(n.Voter)
	e.bytes([]byte(n.Addr))
	return e.b
}

func decodeNode(b []byte) (*cfs.Node, bool) {
	d := newDec(b)
	n := &cfs.Node{ID: cfs.NodeID(d.u16()), State: cfs.State(d.u8()), Voter: d.bool(), Addr: string(d.bytes())}
	return n, d.ok()
}

// The flags of a device; the byte is there only where one is set, as it was not
// in the first records.
const (
	deviceDraining = 1 << iota
	deviceFull
)

func encodeDevice(v *cfs.Device) []byte {
	e := newEnc(41)
	e.u32(uint32(v.ID))
	e.b = append(e.b, v.UUID[:]...)
	e.u8(uint8(v.State))
	e.u64(v.Capacity)
	e.u64(v.FeedPos)
	var flags uint8
	if v.Draining {
		flags |= deviceDraining
	}
	if v.Full {
		flags |= deviceFull
	}
	if flags != 0 {
		e.u8(flags)
	}
	return e.b
}

func decodeDevice(b []byte) (*cfs.Device, bool) {
	d := newDec(b)
	v := &cfs.Device{ID: cfs.DeviceID(d.u32())}
	copy(v.UUID[:], d.take(len(v.UUID)))
	v.State = cfs.State(d.u8())
	v.Capacity = d.u64()
	v.FeedPos = d.u64()
	if len(d.b) > 0 {
		flags := d.u8()
		d.bad = d.bad || flags == 0 || flags > deviceDraining|deviceFull
		v.Draining, v.Full = flags&deviceDraining != 0, flags&deviceFull != 0
	}
	return v, d.ok()
}

func encodeJob(j *cfs.Job) []byte {
	e := newEnc(46)
	e.u32(uint32(j.Device))
	e.u8(uint8(j.Kind))
	e.u8(uint8(j.State))
	e.u64(j.RateBytes)
	e.u64(j.DoneBytes)
	e.u64(j.TotalBytes)
	e.u64(uint64(j.StartedNS))
	e.u64(uint64(j.ChangedNS))
	return e.b
}

func decodeJob(b []byte) (*cfs.Job, bool) {
	d := newDec(b)
	j := &cfs.Job{Device: cfs.DeviceID(d.u32()), Kind: cfs.JobKind(d.u8()), State: cfs.JobState(d.u8()), RateBytes: d.u64(), DoneBytes: d.u64(),
		TotalBytes: d.u64(), StartedNS: int64(d.u64()), ChangedNS: int64(d.u64())}
	return j, d.ok()
}

// usage is what a group holds.
type usage struct {
	stripes uint64
	raw     uint64 // bytes of all shards
}

func encodeUsage(u usage) []byte {
	e := newEnc(16)
	e.u64(u.stripes)
	e.u64(u.raw)
	return e.b
}

func decodeUsage(b []byte) (usage, bool) {
	d := newDec(b)
	u := usage{d.u64(), d.u64()}
	return u, d.ok()
}

func encodePG(g *cfs.PG) []byte {
	e := newEnc(16 + 9*len(g.Slots))
	e.u32(uint32(g.ID))
	e.u8(g.Geometry.K)
	e.u8(g.Geometry.M)
	e.u32(uint32(g.Epoch))
	e.bool(g.Writable)
	e.u8(uint8(len(g.Slots)))
	for _, s := range g.Slots {
		e.u32(uint32(s.Device))
		e.bool(s.Filling)
		e.u32(uint32(s.Source))
	}
	return e.b
}

func decodePG(b []byte) (*cfs.PG, bool) {
	d := newDec(b)
	g := &cfs.PG{ID: cfs.PGID(d.u32()), Geometry: cfs.Geometry{K: d.u8(), M: d.u8()}, Epoch: cfs.Epoch(d.u32()), Writable: d.bool()}
	for n := d.u8(); n > 0 && !d.bad; n-- {
		g.Slots = append(g.Slots, cfs.Slot{Device: cfs.DeviceID(d.u32()), Filling: d.bool(), Source: cfs.DeviceID(d.u32())})
	}
	return g, d.ok()
}

func encodeFreed(f *cfs.Freed) []byte {
	e := newEnc(20)
	e.u32(uint32(f.PG))
	e.u64(uint64(f.Stripe.Session))
	e.u64(f.Stripe.Counter)
	return e.b
}

func decodeFreed(pos uint64, b []byte) (cfs.Freed, bool) {
	d := newDec(b)
	f := cfs.Freed{Pos: pos, PG: cfs.PGID(d.u32()), Stripe: cfs.StripeID{Session: cfs.SessionID(d.u64()), Counter: d.u64()}}
	return f, d.ok()
}

func (e *enc) reply(r *cfs.Reply) []byte {
	e.u8(uint8(r.Kind))
	e.u16(r.Failed)
	e.u64(r.Index)
	e.u16(uint16(len(r.Results)))
	for i := range r.Results {
		res := &r.Results[i]
		for _, a := range [...]*cfs.Attr{&res.Attr, &res.Dir, &res.NewDir} {
			if e.bool(a.Ino != 0); a.Ino != 0 {
				e.attr(a)
			}
		}
		e.u64(uint64(res.Session))
		e.u64(res.DirWas)
	}
	return e.b
}

func decodeReply(b []byte) (*cfs.Reply, bool) {
	d := newDec(b)
	r := &cfs.Reply{Kind: cfs.Kind(d.u8()), Failed: d.u16(), Index: d.u64()}
	for n := d.u16(); n > 0 && !d.bad; n-- {
		var res cfs.Result
		for _, a := range []*cfs.Attr{&res.Attr, &res.Dir, &res.NewDir} {
			if d.bool() {
				*a = d.attr()
				d.bad = d.bad || a.Ino == 0
			}
		}
		res.Session = cfs.SessionID(d.u64())
		res.DirWas = d.u64()
		r.Results = append(r.Results, res)
	}
	return r, d.ok()
}
