package perf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/ec"
	"github.com/claudefs/claudefs/internal/units"
)

// The operations of an ECConfig.
const (
	OpEncode       = "encode"       // parity, and the checksums of the blocks of all shards
	OpReconstruct1 = "reconstruct1" // one data shard of a stripe
	OpReconstruct2 = "reconstruct2" // two
)

// maxWorkingSet bounds the memory of an ECConfig: a quarter is parity or checksums' room.
const maxWorkingSet = 16 << 30

// ECConfig is a bench of the arithmetic of stripes on one goroutine.
type ECConfig struct {
	// WorkingSetBytes of data are gone through again and again: more than the caches hold,
	// so that every stripe is cold.
	WorkingSetBytes units.Bytes `json:"working_set"`
	Runtime         Duration    `json:"runtime"` // of each round
	Rounds          int         `json:"rounds"`
	Seed            uint64      `json:"seed"`

	Progress Progress `json:"-"`
}

// ecGeometry is that of full stripes.
func ecGeometry() cfs.Geometry { return cfs.Geometry{K: 4, M: 2} }

func (c *ECConfig) check() error {
	one := units.Bytes(ecGeometry().MaxData())
	switch {
	case c.WorkingSetBytes < one || c.WorkingSetBytes > maxWorkingSet:
		return cfs.Errorf("--working-set", cfs.Usage, "%s, want a stripe (%s) to %s", c.WorkingSetBytes, one, units.Bytes(maxWorkingSet))
	case c.Runtime <= 0:
		return cfs.Errorf("--runtime", cfs.Usage, "%s is no time to measure", time.Duration(c.Runtime))
	}
	return checkRounds(c.Rounds)
}

// BenchEC measures the coding of full 4+2 stripes with the checksums of all six
// shards, and the reconstruction of one and of two data shards. Rows have the label
// op; bytes are those of the stripes' data. It fails when what comes out is wrong.
func BenchEC(ctx context.Context, cfg ECConfig) (rep *Report, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	b, err := newECBench(&cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	rep = newReport("ec", fmt.Sprintf("%d stripes of %v in memory", len(b.stripes), ecGeometry()))
	var turns []turn
	for _, op := range []struct {
		name string
		lost int
	}{{OpEncode, 0}, {OpReconstruct1, 1}, {OpReconstruct2, 2}} {
		labels := Labels{"op": op.name, "bs": sizeText(int(ecGeometry().MaxData()))}
		turns = append(turns, turn{rep.row(labels, nil), func(ctx context.Context) (Values, error) { return b.round(ctx, op.lost) }})
	}
	if err := interleave(ctx, cfg.Rounds, turns, cfg.Progress); err != nil {
		return nil, err
	}
	return rep.finish(), nil
}

// ecBench is an ECConfig at work.
type ecBench struct {
	cfg     *ECConfig
	codec   *ec.Codec
	memory  []byte
	stripes [][][]byte // the shards of each
	crcs    []byte     // of a stripe; a stripe's are not kept
	next    int        // stripe
}

func newECBench(cfg *ECConfig) (*ecBench, error) {
	const op = "make stripes"
	var codecs ec.Codecs
	g := ecGeometry()
	codec, err := codecs.For(g)
	if err != nil {
		return nil, err
	}
	b := &ecBench{cfg: cfg, codec: codec, crcs: make([]byte, 0, g.Total()*cfs.MaxShardSize/cfs.BlockSize*ec.CRCSize)}
	n := int(cfg.WorkingSetBytes / units.Bytes(g.MaxData()))
	b.memory, err = unix.Mmap(-1, 0, n*g.Total()*cfs.MaxShardSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	fill(b.memory, cfg.Seed) // parity too: the pages are there before the clock runs
	for rest := b.memory; len(rest) > 0; {
		var shards [][]byte
		for range g.Total() {
			shards = append(shards, rest[:cfs.MaxShardSize:cfs.MaxShardSize])
			rest = rest[cfs.MaxShardSize:]
		}
		b.stripes = append(b.stripes, shards)
	}
	for i := range b.stripes {
		if err := b.codec.Encode(b.stripes[i]); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

func (b *ecBench) close() error {
	if err := unix.Munmap(b.memory); err != nil {
		return cfs.E("free the stripes", cfs.KindOf(err), err)
	}
	return nil
}

// round is one round of encoding, or of reconstruction where shards are lost.
func (b *ecBench) round(ctx context.Context, lost int) (Values, error) {
	work := b.encode
	if lost > 0 {
		work = func(i int) error { return b.reconstruct(i, lost) }
	}
	size := int(ecGeometry().MaxData())
	v, err := drive(ctx, []step{func() (int, error) {
		i := b.next
		b.next = (b.next + 1) % len(b.stripes)
		return 1, work(i)
	}}, size, time.Duration(b.cfg.Runtime))
	if err != nil {
		return nil, err
	}
	const microsecond, gigabyte = 1e-6, 1e9
	v[CorePerGB] = v[CPUPerOp] * microsecond / (float64(size) / gigabyte)
	return v, b.verify()
}

// stripeID is the identity that the i-th stripe's checksums are seeded with.
func stripeID(i int) cfs.StripeID { return cfs.StripeID{Session: 1, Counter: uint64(i)} }

// encode makes a stripe's parity and the checksums of its shards.
func (b *ecBench) encode(i int) error {
	if err := b.codec.Encode(b.stripes[i]); err != nil {
		return err
	}
	b.crcs = b.crcs[:0]
	for s, shard := range b.stripes[i] {
		b.crcs = ec.BlockCRCs(b.crcs, stripeID(i), uint8(s), 0, shard)
	}
	return nil
}

// reconstruct loses data shards of a stripe, others each time, and makes them up in their memory.
func (b *ecBench) reconstruct(i, lost int) error {
	shards := b.stripes[i]
	for n := range lost {
		s := (i + n) % int(ecGeometry().K)
		shards[s] = shards[s][:0]
	}
	return b.codec.Reconstruct(shards, nil)
}

// verify holds the stripe that was worked on last against its parity.
func (b *ecBench) verify() error {
	i := (b.next + len(b.stripes) - 1) % len(b.stripes)
	ok, err := b.codec.Verify(b.stripes[i])
	if err == nil && !ok {
		err = cfs.Errorf("verify a stripe", cfs.Corrupt, "its parity does not belong to its data")
	}
	return err
}
