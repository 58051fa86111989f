package scrape

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

const text = `# HELP store_requests_total Shard requests.
store_requests_total{op="get"} 7
store_requests_total{op="put",kind="a}b {"} 2e3
store_requests_total_more 5
plain 3 1700000000
`

func TestSum(t *testing.T) {
	samples, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, label string
		want        float64
		kind        cfs.Kind
	}{
		{"store_requests_total", `op="get"`, 7, 0},
		{"store_requests_total", "", 2007, 0},
		{"plain", "", 3, 0},
		{"store_requests", "", 0, cfs.NotFound},
		{"store_requests_total", `op="list"`, 0, cfs.NotFound},
	} {
		v, err := Sum(samples, c.name, c.label)
		if v != c.want || (err != nil) != (c.kind != 0) || err != nil && cfs.KindOf(err) != c.kind {
			t.Errorf("%s{%s}: %g, %v", c.name, c.label, v, err)
		}
	}
}

func TestSums(t *testing.T) {
	samples, err := Parse(strings.NewReader(`# HELP a_total Things.
# TYPE a_total counter
a_total 3
b_total{op="x y",path="}1"} 1.5e3
b_total{op="z"} 1 1700000000

`))
	if got := Sums(samples); err != nil || got["a_total"] != 3 || got["b_total"] != 1501 || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, bad := range []string{"a", "a x", "a{", "plain ", "plain x", `plain{a="b"}`} {
		if s, err := Parse(strings.NewReader(bad)); cfs.KindOf(err) != cfs.Corrupt {
			t.Errorf("%q: %v, %v", bad, s, err)
		}
	}
}

func TestRead(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		w.Write([]byte(text))
	}))
	addr := strings.TrimPrefix(srv.URL, "http://")
	samples, err := Read(t.Context(), addr)
	if v, serr := Sum(samples, "plain", ""); v != 3 || err != nil || serr != nil {
		t.Errorf("%g, %v, %v", v, err, serr)
	}
	srv.Close()
	if _, err := Read(t.Context(), addr); cfs.KindOf(err) != cfs.Unavailable {
		t.Errorf("nobody there: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(text), "plain", "")
	f.Add([]byte("a 1\nb{c=\"d\"} 2\n"), "b", "c")
	f.Add([]byte("a{} 1"), "a", "{")
	f.Add([]byte("}{ 1"), "", "")
	f.Fuzz(func(t *testing.T, raw []byte, name, label string) {
		samples, err := Parse(bytes.NewReader(raw))
		if err != nil && cfs.KindOf(err) != cfs.Corrupt && cfs.KindOf(err) != cfs.IO {
			t.Errorf("%v", err)
		}
		if v, err := Sum(samples, name, label); err != nil && v != 0 {
			t.Errorf("%g with %v", v, err)
		}
	})
}
