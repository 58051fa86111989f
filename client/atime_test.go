package client

import (
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestAccesses(t *testing.T) {
	var s accesses
	read := cfs.Attr{Ino: 7, AtimeNS: 1, MtimeNS: 5, CtimeNS: 5}
	if got := s.over(read); got != read {
		t.Errorf("nothing noted: %+v", got)
	}
	s.note(7, 10)
	if got := s.over(read); got.AtimeNS != 10 || got.CtimeNS != 5 {
		t.Errorf("noted: %+v", got)
	}
	if set := (cfs.Attr{Ino: 7, AtimeNS: 3, MtimeNS: 5, CtimeNS: 11}); s.over(set) != set {
		t.Errorf("set since: %+v", s.over(set))
	}
	ops := s.some(maxCombinedOps)
	if len(ops) != 1 || ops[0].Ino != 7 || ops[0].Mask != cfs.SetRelatime || ops[0].Attr.AtimeNS != 10 {
		t.Fatalf("operations %+v", ops)
	}
	s.note(7, 20) // while they are on their way
	s.told(ops)
	if got := s.over(read); got.AtimeNS != 20 {
		t.Errorf("a later reading is lost: %+v", got)
	}
	s.forget(7)
	if len(s.some(1)) != 0 || s.over(read) != read {
		t.Errorf("somebody sets the time: %+v", s.over(read))
	}
	for i := range 2 * maxAccesses {
		s.note(cfs.Ino(i), 1)
	}
	if n := len(s.some(3 * maxAccesses)); n != maxAccesses || s.count.Load() != int64(n) {
		t.Errorf("%d readings are kept, counted %d", n, s.count.Load())
	}
}
