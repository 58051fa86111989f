package units

import (
	"encoding/json"
	"testing"
)

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"4096": 4096, "64KiB": 64 << 10, "4k": 4 << 10, "256kib": 256 << 10, "1 GiB": 1 << 30, "8G": 8 << 30, "3TiB": 3 << 40, "7B": 7, "0": 0} {
		var b Bytes
		if err := b.Set(text); err != nil || b != want {
			t.Errorf("%q: %d, %v, want %d", text, b, err, want)
		}
		var again Bytes
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%q printed as %s reads %d, %v", text, b, again, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5GiB", "9999999TiB", "GiB", "1 PiB"} {
		var b Bytes
		if err := b.Set(text); err == nil {
			t.Errorf("%q reads as %d", text, b)
		}
	}
}

func TestBytesInJSON(t *testing.T) {
	var v struct{ Size Bytes }
	if err := json.Unmarshal([]byte(`{"Size": "256KiB"}`), &v); err != nil || v.Size != 256<<10 {
		t.Fatalf("%d, %v", v.Size, err)
	}
	if out, err := json.Marshal(v); err != nil || string(out) != `{"Size":"256KiB"}` {
		t.Errorf("%s, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"Size": "big"}`), &v); err == nil {
		t.Error("a size that is none is read")
	}
}
