package cfs

import "testing"

// Every operation and every query has a name of its own.
func TestNamesOfOperations(t *testing.T) {
	seen := map[string]bool{}
	for k := OpKind(1); k < opKindEnd; k++ {
		if n := k.String(); n == "" || n == "unknown" || seen[n] {
			t.Errorf("operation %d is called %q", uint8(k), n)
		}
		seen[k.String()] = true
	}
	for k := QueryKind(1); k < queryKindEnd; k++ {
		if n := k.String(); n == "" || n == "unknown" || seen[n] {
			t.Errorf("query %d is called %q", uint8(k), n)
		}
		seen[k.String()] = true
	}
	if opKindEnd.String() != "unknown" || QueryKind(0).String() != "unknown" {
		t.Error("numbers that are no operation have names")
	}
}
