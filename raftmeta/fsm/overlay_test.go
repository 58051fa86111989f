package fsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// An overlay that is used again and again says what a map says, with few rows and with many.
func TestOverlayModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var o overlay
	for range 300 {
		o.reset()
		model := map[string]string{}
		span := 1 + rng.IntN(6*searchUpTo)
		for range rng.IntN(4 * span) {
			k := fmt.Sprintf("%c%d", 'a'+rng.IntN(3), rng.IntN(span))
			key, val := []byte(k), []byte(fmt.Sprint(rng.Uint32()))
			switch rng.IntN(8) {
			case 0:
				o.put(key, nil)
				model[k] = ""
			case 1, 2, 3:
				model[k] = string(val)
				o.put(key, val)
				clear(key) // they are the caller's again
				clear(val)
			case 4:
				var got []string
				for _, i := range o.between([]byte("b"), []byte("c")) {
					got = append(got, string(o.rows[i].key))
				}
				want := slices.DeleteFunc(slices.Sorted(maps.Keys(model)), func(k string) bool { return k[0] != 'b' })
				if !slices.Equal(got, want) {
					t.Fatalf("between: %q, want %q", got, want)
				}
			default:
				want, known := model[k]
				if got, ok := o.get(key); ok != known || string(got) != want {
					t.Fatalf("%q is %q %v, want %q %v", k, got, ok, want, known)
				}
			}
		}
		var keys []string
		_ = o.each(func(k, v []byte) error {
			if keys = append(keys, string(k)); string(v) != model[string(k)] || (v == nil) != (model[string(k)] == "") {
				t.Fatalf("%q is %q, want %q", k, v, model[string(k)])
			}
			return nil
		})
		if !slices.Equal(keys, slices.Sorted(maps.Keys(model))) {
			t.Fatalf("keys %q", keys)
		}
	}
}

// What an extraordinary command needed is not kept.
func TestOverlayKeepsLittle(t *testing.T) {
	var o overlay
	o.put([]byte("a"), make([]byte, keepBytes+1))
	o.reset()
	if cap(o.mem) > keepBytes {
		t.Errorf("%d bytes are kept", cap(o.mem))
	}
	for i := range 2 * keepRows {
		o.put([]byte(fmt.Sprint(i)), nil)
	}
	o.reset()
	if cap(o.rows) > keepRows || len(o.index) > 0 {
		t.Errorf("%d rows are kept", cap(o.rows))
	}
}

func TestOverlayAllocs(t *testing.T) {
	var o overlay
	keys := make([][]byte, searchUpTo)
	for i := range keys {
		keys[i] = []byte(fmt.Sprint("key", i))
	}
	val := make([]byte, 100)
	n := testing.AllocsPerRun(100, func() {
		o.reset()
		for _, k := range keys {
			o.put(k, val)
			o.get(k)
		}
		_ = o.each(func(_, _ []byte) error { return nil })
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
