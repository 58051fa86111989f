package linear

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
)

// TestModels: histories that have an order, and some that have none.
func TestModels(t *testing.T) {
	op := func(call, end int64, in input, out output) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	create := input{Act: actCreate, Name: 1, Value: 7}
	look := input{Act: actLookup, Name: 1}
	set, get := input{Act: actSet, Value: 5}, input{Act: actGet}
	one, two := input{Act: actLock, Value: 1}, input{Act: actLock, Value: 2}
	for _, c := range []struct {
		what  string
		model porcupine.Model
		ops   []porcupine.Operation
		legal bool
	}{
		{"found after it was made", directory(), []porcupine.Operation{op(0, 1, create, output{}), op(2, 3, look, output{Value: 7})}, true},
		{"not found after it was made", directory(), []porcupine.Operation{op(0, 1, create, output{}), op(2, 3, look, output{Outcome: missing})}, false},
		{"not found while it is made", directory(), []porcupine.Operation{op(0, 5, create, output{}), op(2, 3, look, output{Outcome: missing})}, true},
		{"made later than anybody was told", directory(), []porcupine.Operation{
			op(0, math.MaxInt64, create, output{Outcome: unknown}), op(2, 3, look, output{Outcome: missing}), op(4, 5, look, output{Value: 7})}, true},
		{"there, and gone again", directory(), []porcupine.Operation{
			op(0, math.MaxInt64, create, output{Outcome: unknown}), op(2, 3, look, output{Value: 7}), op(4, 5, look, output{Outcome: missing})}, false},
		{"carried out twice", directory(), []porcupine.Operation{op(0, 1, create, output{Outcome: exists}), op(2, 3, look, output{Value: 7})}, false},
		{"listed", directory(), []porcupine.Operation{op(0, 1, create, output{}), op(2, 3, input{Act: actReadDir}, output{Listing: [names]uint64{1: 7}})}, true},
		{"linked to nothing", directory(), []porcupine.Operation{op(0, 1, input{Act: actLink, Value: 3, To: 2}, output{})}, false},
		{"an old value", register(), []porcupine.Operation{op(0, 1, set, output{}), op(2, 3, get, output{})}, false},
		{"the value", register(), []porcupine.Operation{op(0, 1, set, output{}), op(2, 3, get, output{Value: 5})}, true},
		{"two owners", lock(), []porcupine.Operation{op(0, 1, one, output{}), op(2, 3, two, output{})}, false},
		{"busy", lock(), []porcupine.Operation{op(0, 1, one, output{}), op(2, 3, two, output{Outcome: busy})}, true},
		{"busy when it is free", lock(), []porcupine.Operation{op(2, 3, two, output{Outcome: busy})}, false},
	} {
		if got := porcupine.CheckOperations(c.model, c.ops); got != c.legal {
			t.Errorf("%s: %v, want %v", c.what, got, c.legal)
		}
	}
}
