package cfs

import "testing"

func TestAtimeDue(t *testing.T) {
	for _, c := range []struct {
		a    Attr
		at   int64
		want bool
	}{
		{Attr{AtimeNS: 5, MtimeNS: 5, CtimeNS: 5}, 6, true},
		{Attr{AtimeNS: 5, MtimeNS: 5, CtimeNS: 5}, 5, false},
		{Attr{AtimeNS: 6, MtimeNS: 5, CtimeNS: 5}, 7, false},
		{Attr{AtimeNS: 6, MtimeNS: 5, CtimeNS: 8}, 9, true},
		{Attr{AtimeNS: 6, MtimeNS: 5, CtimeNS: 8}, 8, false}, // somebody may have set it at 8
		{Attr{AtimeNS: 6, MtimeNS: 9, CtimeNS: 5}, 7, true},
		{Attr{AtimeNS: 6, MtimeNS: 5, CtimeNS: 5}, 6 + relatimeNS - 1, false},
		{Attr{AtimeNS: 6, MtimeNS: 5, CtimeNS: 5}, 6 + relatimeNS, true},
	} {
		if got := c.a.AtimeDue(c.at); got != c.want {
			t.Errorf("%+v read at %d: %v", c.a, c.at, got)
		}
	}
}
