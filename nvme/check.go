package nvme

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// DefaultMaxProblems bounds the problems that a check lists when CheckOptions does not say.
	DefaultMaxProblems = 1000
	// maxLostBlocks is how many blocks that cannot be read a check passes over.
	maxLostBlocks = 4096
)

// CheckOptions adjusts a Check.
type CheckOptions struct {
	// Quick leaves out the payloads, but for those that a crash may have torn.
	Quick bool
	// MaxProblems bounds the problems that are listed; 0 for DefaultMaxProblems. All are counted.
	MaxProblems int
	// Progress is told after each segment, by one goroutine at a time; nil for none.
	Progress func(doneSegments, segments int)
}

// ProblemKind is what a Problem is about.
type ProblemKind string

// The kinds of Problem.
const (
	ProblemSuperblock ProblemKind = "superblock"     // a copy is damaged or missing, or the copies differ
	ProblemState      ProblemKind = "device state"   // a slot is damaged
	ProblemHeader     ProblemKind = "segment header" // a copy is damaged
	ProblemSequence   ProblemKind = "sequence"       // two segments have the same
	ProblemBitmap     ProblemKind = "bitmap"         // a slot is damaged or covers what is not there
	ProblemBit        ProblemKind = "bit"            // set where no record is
	ProblemFooter     ProblemKind = "footer"         // damaged, or it does not go with the batches
	ProblemLine       ProblemKind = "footer line"    // names a record that no batch header has there
	ProblemBatch      ProblemKind = "batch header"   // damaged
	ProblemPayload    ProblemKind = "payload"        // of a live record, does not fit its checksums
	ProblemKey        ProblemKind = "key"            // has two live records that no interrupted move explains
	ProblemUnreadable ProblemKind = "unreadable"     // the device fails to read a block
)

// Problem is one thing that is wrong on a device.
type Problem struct {
	Kind    ProblemKind `json:"kind"`
	Segment int         `json:"segment"` // -1 when it lies in front of the segments
	Offset  int64       `json:"offset"`  // of the block, on the device
	Key     string      `json:"key,omitempty"`
	// Crash says that a power cut in the middle of a write can have left it, and that no live record is
	// known to be lost by it.
	Crash bool   `json:"crash"`
	Text  string `json:"text"`
}

// SegmentState is what a check finds a segment to be.
type SegmentState string

// The states of a segment.
const (
	SegmentUnused SegmentState = "unused" // never written under this formatting
	SegmentFree   SegmentState = "free"   // its header says that nothing in it is worth anything
	SegmentOpen   SegmentState = "open"   // without a whole footer: being filled, or it ended by a crash
	SegmentSealed SegmentState = "sealed" // with a footer
	SegmentLost   SegmentState = "lost"   // its header or a bitmap cannot be read: a start leaves it out, and so does the check
)

// SegmentReport is what a check found in one segment.
type SegmentReport struct {
	Segment   int          `json:"segment"`
	State     SegmentState `json:"state"`
	Sequence  uint64       `json:"sequence"`
	Stream    int          `json:"stream"`
	Records   int          `json:"records"` // under whole batch headers, dead ones too
	Live      int          `json:"live"`
	LiveBytes int64        `json:"live_bytes"` // of payloads
	UsedBytes int64        `json:"used_bytes"` // up to the end of the last batch
	Problems  int          `json:"problems"`
}

// CheckReport is what Check found.
type CheckReport struct {
	Path         string `json:"path"`
	ClusterID    string `json:"cluster_id"`
	Device       string `json:"device"`
	UUID         string `json:"uuid"`
	SizeBytes    int64  `json:"size_bytes"` // when it was formatted
	SegmentBytes uint32 `json:"segment_bytes"`
	FeedPosition uint64 `json:"feed_position"` // in the delete feed, as stored
	Quick        bool   `json:"quick"`

	Segments      []SegmentReport `json:"segments"`
	Records       int             `json:"records"`        // under whole batch headers
	Live          int             `json:"live"`           // keys
	LiveBytes     int64           `json:"live_bytes"`     // of their payloads
	VerifiedBytes int64           `json:"verified_bytes"` // of payloads compared with their checksums

	// What a crash leaves, and no problem:
	Torn        int `json:"torn"`         // records: header whole, payload not, behind what was known to be durable
	TornHeaders int `json:"torn_headers"` // damaged batch headers behind it
	Gaps        int `json:"gaps"`         // places without a batch header in front of one
	Copies      int `json:"copies"`       // live records that are somewhere else too: a move was interrupted, or they were replaced
	HalfHeaders int `json:"half_headers"` // segments whose header copies differ: their start or end was interrupted
	// Records that the bitmap lets live and a footer leaves out: they failed, or were deleted before it was written.
	Omitted int `json:"omitted"`

	// What a start of the log would find.
	StartRecords int    `json:"start_records"`
	StartError   string `json:"start_error,omitempty"` // why it would fail

	Problems    []Problem           `json:"problems"`    // up to the bound, by offset
	ByKind      map[ProblemKind]int `json:"by_kind"`     // counts of all
	Found       int                 `json:"found"`       // all problems
	Unexplained int                 `json:"unexplained"` // those that a crash does not explain
}

// Clean reports that there is no problem.
func (r *CheckReport) Clean() bool { return r.Found == 0 }

// Check reads a whole device that no log has open, and changes nothing. It
// rebuilds the index from the batch headers alone, compares every payload with
// its checksums, and holds what it found against the superblocks, the state, the
// headers, bitmaps and footers of the segments. NotFound when the device is not
// formatted; Corrupt when both superblocks are damaged or the device has shrunk;
// IO when too much of it cannot be read; Canceled or Timeout when ctx ends.
func Check(ctx context.Context, dev Device, opt CheckOptions) (*CheckReport, error) {
	c, err := check(ctx, dev, opt)
	if err != nil {
		return nil, err
	}
	return &c.report, nil
}

// checker is a check under way.
type checker struct {
	layout
	ctx    context.Context
	opt    CheckOptions
	report CheckReport

	index     *index          // live records, by their headers
	headers   []segmentHeader // of the segments that were visited
	sequences map[uint64]int  // the segments that have them
	extra     map[Key]bool    // records that footers let a start find, and batch headers do not
	lostCount atomic.Int64
	startLost atomic.Int64          // of these, those that a start reads
	tooMany   atomic.Pointer[error] // the one that is too many for a start
}

func check(ctx context.Context, dev Device, opt CheckOptions) (*checker, error) {
	opt.MaxProblems = cmp.Or(opt.MaxProblems, DefaultMaxProblems)
	c := &checker{ctx: ctx, opt: opt, index: newIndex(), sequences: map[uint64]int{}, extra: map[Key]bool{}}
	c.report = CheckReport{Path: dev.Info().Path, Quick: opt.Quick, Problems: []Problem{}, ByKind: map[ProblemKind]int{}}
	sb, err := c.readSuperblocks(dev)
	if err != nil {
		return nil, err
	}
	if size := dev.Info().SizeBytes; size < sb.SizeBytes {
		return nil, cfs.Errorf("check "+c.report.Path, cfs.Corrupt, "the device ends at offset %d, it was formatted with %d bytes", size, sb.SizeBytes)
	}
	_, err = ReadSuperblock(dev) // which refuses more than the bytes of a superblock say
	c.startFails(err)
	c.layout = newLayout(dev, sb)
	c.report.ClusterID, c.report.Device, c.report.UUID = sb.ClusterID, sb.Device.String(), sb.UUID.String()
	c.report.SizeBytes, c.report.SegmentBytes = sb.SizeBytes, sb.SegmentBytes
	c.headers = make([]segmentHeader, sb.segments())
	c.report.Segments = make([]SegmentReport, sb.segments())
	if err := c.checkState(); err != nil {
		return nil, err
	}
	if err := c.checkSegments(); err != nil {
		return nil, err
	}
	c.finish()
	return c, nil
}

// add lists a problem, or only counts it.
func (c *checker) add(p Problem) {
	r := &c.report
	r.Found++
	r.ByKind[p.Kind]++
	if !p.Crash {
		r.Unexplained++
	}
	if len(r.Problems) < c.opt.MaxProblems {
		r.Problems = append(r.Problems, p)
	}
}

// startFails notes the first reason why a start would fail.
func (c *checker) startFails(err error) {
	if err != nil && c.report.StartError == "" {
		c.report.StartError = err.Error()
	}
}

// readSuperblocks reads both copies, and is the one that counts.
func (c *checker) readSuperblocks(dev Device) (Superblock, error) {
	op := "check " + c.report.Path
	if size := dev.Info().SizeBytes; size < HeaderAreaBytes {
		return Superblock{}, cfs.Errorf(op, cfs.NotFound, "a device of %d bytes is not formatted", size)
	}
	mem, err := newScratch(cfs.BlockSize)
	if err != nil {
		return Superblock{}, err
	}
	defer mem.free()
	var copies [2]Superblock
	var errs [2]error
	for i, off := range superOffsets() {
		if errs[i] = dev.Read(mem.p, off); errs[i] == nil {
			copies[i], errs[i] = decodeSuper(mem.p, off)
		}
	}
	if errs[0] != nil && errs[1] != nil {
		first, second := cfs.KindOf(errs[0]), cfs.KindOf(errs[1])
		switch {
		case first == cfs.NotFound && second == cfs.NotFound:
			return Superblock{}, cfs.Errorf(op, cfs.NotFound, "it is not formatted")
		case first == cfs.Corrupt || second == cfs.Corrupt:
			first = cfs.Corrupt
		}
		return Superblock{}, cfs.E(op, first, errors.Join(errs[:]...))
	}
	best := 0
	if errs[0] != nil || errs[1] == nil && copies[1].Generation > copies[0].Generation {
		best = 1
	}
	if other := 1 - best; errs[other] != nil || copies[other] != copies[best] {
		p := Problem{Kind: ProblemSuperblock, Segment: none, Offset: superOffsets()[other]}
		switch kind := cfs.KindOf(errs[other]); {
		case errs[other] == nil:
			p.Text = fmt.Sprintf("the copies differ: generation %d here, %d in the other", copies[other].Generation, copies[best].Generation)
		case kind == cfs.NotFound:
			p.Text = "a copy is not there"
		case kind == cfs.Corrupt:
			p.Text = errs[other].Error()
		default:
			p.Kind, p.Text = ProblemUnreadable, errs[other].Error()
		}
		c.add(p)
	}
	return copies[best], nil
}

// checkState reads the device's state.
func (c *checker) checkState() error {
	l := c.layout
	l.skip = func(off int64, err error) error {
		c.startLost.Add(1)
		c.add(Problem{Kind: ProblemUnreadable, Segment: none, Offset: off, Text: err.Error()})
		return nil
	}
	var flaws []flaw
	l.damaged = func(f flaw) { flaws = append(flaws, f) }
	st, err := l.readState()
	for _, f := range flaws {
		// The slots are written in turn, so a crash tears one of them at most.
		c.add(Problem{Kind: ProblemState, Segment: none, Offset: f.off, Text: f.err.Error(), Crash: len(flaws) == 1})
	}
	c.report.FeedPosition = st.feedPosition
	return err
}

// checkSegments checks all segments, several at once, and visits them in the order of their lives.
func (c *checker) checkSegments() error {
	all := make([]*segmentCheck, c.sb.segments())
	err := inParallel(len(all), nil, func(i int, mem []byte) error {
		if err := c.canceled(); err != nil {
			return err
		}
		all[i] = newSegmentCheck(c, i)
		return all[i].readHead(mem)
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b *segmentCheck) int { return cmp.Compare(a.report.Sequence, b.report.Sequence) })
	done := 0
	return readInOrder(all, (*segmentCheck).read, func(s *segmentCheck) error {
		done++
		c.visit(s)
		if c.opt.Progress != nil {
			c.opt.Progress(done, len(all))
		}
		return c.canceled()
	})
}

// canceled is the context's end as an error.
func (c *checker) canceled() error {
	if err := c.ctx.Err(); err != nil {
		return cfs.E("check "+c.report.Path, contextKind(err), err)
	}
	return nil
}

// visit takes over what was found in a segment. It is called in the order of the segments' lives.
func (c *checker) visit(s *segmentCheck) {
	r := &c.report
	f := s.found
	if f != nil {
		if other, used := c.sequences[f.header.seq]; used {
			s.add(ProblemSequence, 0, false, "sequence %d is that of segment %d too", f.header.seq, other)
		}
		c.sequences[f.header.seq] = s.seg
		c.headers[s.seg] = f.header
		if f.copies < segHeaderBlocks && s.headerFlaws == 0 {
			r.HalfHeaders++
		}
		r.Gaps += len(f.gaps)
		r.Records += len(f.lines)
	}
	r.Torn += s.torn
	r.TornHeaders += s.tornHeaders
	r.Omitted += s.omitted
	r.VerifiedBytes += s.verifiedBytes
	for _, k := range s.extra {
		c.extra[k] = true
	}
	for i := range s.fates {
		if s.fates[i] == fateLive {
			c.take(s, i)
		}
	}
	for _, p := range s.problems {
		c.add(p)
	}
	s.report.Problems = len(s.problems)
	r.Segments[s.seg] = s.report
}

// take puts a live record into the index.
func (c *checker) take(s *segmentCheck, i int) {
	line := &s.found.lines[i]
	rec := line.record()
	old, twice, kept, err := c.index.adopt(&rec, line.revision, location{uint32(s.seg), uint32(line.header), uint32(line.payload)})
	if err != nil {
		c.startFails(err)
		s.addKey(ProblemBatch, uint32(line.header), line.key, "%v", err)
		return
	}
	if kept {
		s.report.Live++
		s.report.LiveBytes += int64(rec.Len)
	}
	if !twice {
		return
	}
	if !kept {
		c.report.Copies++
		return
	}
	before := &c.report.Segments[old.seg]
	if int(old.seg) == s.seg {
		before = &s.report
	}
	before.Live--
	before.LiveBytes -= int64(old.sizeBytes())
	there := c.segOffset(int(old.seg), old.payload)
	switch {
	case old.revision != line.revision:
		c.report.Copies++
	case int(old.seg) == s.seg && s.found.header.stream == putStream:
		// A move that was interrupted and began again can leave two copies in one segment; a put cannot.
		s.addKey(ProblemKey, uint32(line.payload), line.key, "it lives at offset %d of the same segment too", there)
	case !c.equal(&old, &rec, s.found.crcs[i]):
		s.addKey(ProblemKey, uint32(line.payload), line.key, "it lives at offset %d too, and is another there", there)
	default:
		c.report.Copies++
	}
}

// equal compares a record with one of its key that was found earlier: what it
// says of itself, and the checksums of its blocks.
func (c *checker) equal(old *entry, rec *Record, crcs []byte) bool {
	if c.index.record(&entry{key: old.key, group: old.group, blocks: old.blocks}) != *rec {
		return false
	}
	mem, err := newScratch(cfs.BlockSize)
	if err != nil {
		return true
	}
	defer mem.free()
	off := c.segOffset(int(old.seg), old.header)
	if err := c.dev.Read(mem.p, off); err != nil {
		return true // it was whole a moment ago
	}
	_, entries, _ := decodeBatch(mem.p, &c.headers[old.seg], old.header, off, nil)
	return slices.ContainsFunc(entries, func(e batchEntry) bool {
		return e.block == old.payload && e.rec == *rec && slices.Equal(e.crcs, crcs)
	})
}

// finish sums up.
func (c *checker) finish() {
	r := &c.report
	if err := c.tooMany.Load(); err != nil {
		c.startFails(*err)
	}
	for i := range r.Segments {
		r.LiveBytes += r.Segments[i].LiveBytes
	}
	r.Live = c.index.len()
	r.StartRecords = r.Live
	for k := range c.extra {
		if _, ok := c.index.get(k); !ok {
			r.StartRecords++
		}
	}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return cmp.Compare(a.Offset, b.Offset) })
}
