package ec

import (
	"bytes"
	"errors"
	"sync"

	"github.com/klauspost/reedsolomon"

	"github.com/claudefs/claudefs/cfs"
)

// maxShards bounds k+m; beyond it the library changes to another code.
const maxShards = 255

// Codec encodes and reconstructs stripes of one geometry, for any number of
// goroutines. Each call works in its caller's goroutine alone: stripes are the
// unit of parallelism.
type Codec struct {
	geo cfs.Geometry
	rs  reedsolomon.Encoder // nil for copies
}

// New makes the codec of g; cfs.Invalid for a geometry that is none. It
// computes matrices: keep the codec, or use Codecs.
func New(g cfs.Geometry) (*Codec, error) {
	if g.K == 0 || g.M == 0 || g.Total() > maxShards {
		return nil, cfs.Errorf("make codec", cfs.Invalid, "geometry %v", g)
	}
	c := &Codec{geo: g}
	if g.K == 1 {
		return c, nil
	}
	rs, err := reedsolomon.New(int(g.K), int(g.M), reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(true))
	if err != nil {
		return nil, cfs.E("make codec "+g.String(), cfs.Invalid, err)
	}
	c.rs = rs
	return c, nil
}

// Geometry is what the codec was made for.
func (c *Codec) Geometry() cfs.Geometry { return c.geo }

// Encode fills the m parity shards from the k data shards. All have the same
// size, which is not 0.
func (c *Codec) Encode(shards [][]byte) error {
	if _, _, err := c.survey("encode", shards, false); err != nil {
		return err
	}
	if c.rs == nil {
		for _, p := range shards[1:] {
			copy(p, shards[0])
		}
		return nil
	}
	return c.failed("encode", c.rs.Encode(shards))
}

// Reconstruct fills missing shards, those of length 0, from any k others: all
// that are missing, or with want those that it names (one for each shard). The
// memory of a missing shard is what its slice has capacity for; without enough
// new memory is taken. Fewer than k shards are cfs.Unavailable.
func (c *Codec) Reconstruct(shards [][]byte, want []bool) error {
	if want != nil && len(want) != c.geo.Total() {
		return cfs.Errorf("reconstruct", cfs.Invalid, "%d wanted of %d shards", len(want), c.geo.Total())
	}
	size, source, err := c.survey("reconstruct", shards, true)
	if err != nil {
		return err
	}
	switch {
	case c.rs != nil && want == nil:
		return c.failed("reconstruct", c.rs.Reconstruct(shards))
	case c.rs != nil:
		return c.failed("reconstruct", c.rs.ReconstructSome(shards, want))
	}
	for i, s := range shards {
		if len(s) != 0 || want != nil && !want[i] {
			continue
		}
		if cap(s) < size {
			s = make([]byte, size)
		}
		shards[i] = s[:size]
		copy(shards[i], shards[source])
	}
	return nil
}

// Verify reports whether the parity shards belong to the data shards. All are present.
func (c *Codec) Verify(shards [][]byte) (bool, error) {
	if _, _, err := c.survey("verify", shards, false); err != nil {
		return false, err
	}
	if c.rs == nil {
		for _, p := range shards[1:] {
			if !bytes.Equal(p, shards[0]) {
				return false, nil
			}
		}
		return true, nil
	}
	ok, err := c.rs.Verify(shards)
	return ok, c.failed("verify", err)
}

// survey checks the shards and is their size and the first that is present.
func (c *Codec) survey(op string, shards [][]byte, missing bool) (size, source int, err error) {
	if len(shards) != c.geo.Total() {
		return 0, 0, cfs.Errorf(op, cfs.Invalid, "%d shards for geometry %v", len(shards), c.geo)
	}
	have := 0
	for i, s := range shards {
		if len(s) == 0 && missing {
			continue
		}
		if have == 0 {
			size, source = len(s), i
		}
		if len(s) != size || size == 0 {
			return 0, 0, cfs.Errorf(op, cfs.Invalid, "shard %d has %d bytes, shard %d has %d", i, len(s), source, size)
		}
		have++
	}
	if have < int(c.geo.K) {
		return 0, 0, cfs.Errorf(op, cfs.Unavailable, "%d shards left, %d needed", have, c.geo.K)
	}
	return size, source, nil
}

// failed is a plain nil for nil.
func (c *Codec) failed(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, reedsolomon.ErrTooFewShards):
		return cfs.E(op, cfs.Unavailable, err)
	}
	return cfs.E(op, cfs.Invalid, err)
}

// Codecs makes the codec of each geometry once. The zero value is ready; it is
// bounded by the geometries there are.
type Codecs struct{ made sync.Map }

// For is the codec of g.
func (s *Codecs) For(g cfs.Geometry) (*Codec, error) {
	if c, ok := s.made.Load(g); ok {
		return c.(*Codec), nil
	}
	c, err := New(g)
	if err != nil {
		return nil, err
	}
	kept, _ := s.made.LoadOrStore(g, c)
	return kept.(*Codec), nil
}
