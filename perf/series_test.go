package perf

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

const samples = `# HELP store_requests_total Shard requests.
store_requests_total{op="get"} 7
store_requests_total{op="put",kind="a}b {"} 2e3
store_requests_total_more 5
plain 3 1700000000
`

func TestSumSamples(t *testing.T) {
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
		v, err := sumSamples(strings.NewReader(samples), c.name, c.label)
		if v != c.want || (err != nil) != (c.kind != 0) || err != nil && cfs.KindOf(err) != c.kind {
			t.Errorf("%s{%s}: %g, %v", c.name, c.label, v, err)
		}
	}
	for _, bad := range []string{"plain ", "plain x", `plain{a="b"}`} {
		if v, err := sumSamples(strings.NewReader(bad), "plain", ""); cfs.KindOf(err) != cfs.Corrupt {
			t.Errorf("%q: %g, %v", bad, v, err)
		}
	}
}

func FuzzSumSamples(f *testing.F) {
	f.Add(samples, "plain", "")
	f.Add("a{} 1", "a", "{")
	f.Fuzz(func(t *testing.T, text, name, label string) {
		if v, err := sumSamples(strings.NewReader(text), name, label); err != nil && v != 0 {
			t.Errorf("%g with %v", v, err)
		}
	})
}

func TestCounter(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		w.Write([]byte(samples))
	}))
	addr := strings.TrimPrefix(srv.URL, "http://")
	if v, err := counter(t.Context(), addr, "plain", ""); v != 3 || err != nil {
		t.Errorf("%g, %v", v, err)
	}
	srv.Close()
	if _, err := counter(t.Context(), addr, "plain", ""); cfs.KindOf(err) != cfs.Unavailable {
		t.Errorf("nobody there: %v", err)
	}
}
