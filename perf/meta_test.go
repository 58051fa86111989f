package perf

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

func goodMeta() MetaConfig {
	return MetaConfig{Inodes: 4000, Entries: 2000, Runtime: Duration(20 * time.Millisecond), Rounds: 1}
}

func TestMetaConfig(t *testing.T) {
	for _, c := range []struct {
		change func(*MetaConfig)
		want   string // of the error; "" for none
	}{
		{func(*MetaConfig) {}, ""},
		{func(c *MetaConfig) { c.Shapes = []string{"sideways"} }, "--shape"},
		{func(c *MetaConfig) { c.Entries = 10 }, "--entries"},
		{func(c *MetaConfig) { c.Inodes = c.Entries }, "--inodes"},
		{func(c *MetaConfig) { c.Inodes = maxInodes + 1 }, "--inodes"},
		{func(c *MetaConfig) { c.Inodes, c.Shapes = 0, []string{ShapeStat} }, ""},
		{func(c *MetaConfig) { c.Runtime = 0 }, "--runtime"},
		{func(c *MetaConfig) { c.Rounds = 0 }, "--rounds"},
	} {
		cfg := goodMeta()
		c.change(&cfg)
		err := cfg.check()
		if c.want == "" && err != nil || c.want != "" && (cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", cfg, err, c.want)
		}
	}
}

func TestBuiltInMetaTargetsNameRows(t *testing.T) {
	text, err := os.ReadFile("targets/ci/meta.json")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseTargets("meta.json", text)
	if err != nil {
		t.Fatal(err)
	}
	ops := []string{"log", "create", "stat", "lookup", "start", "readdir", "failover"}
	for _, target := range f.Targets {
		for _, l := range []Labels{target.Of, target.Over} {
			if l != nil && !slices.Contains(ops, l["op"]) {
				t.Errorf("%s: no row has op=%s", target.Name, l["op"])
			}
		}
	}
}

// A program that is not there, or that ends at once, is told of, and nothing is left.
func TestMetaBenchWithoutServers(t *testing.T) {
	for program, want := range map[string]cfs.Kind{"/no/such/program": cfs.NotFound, "/bin/false": cfs.Unavailable} {
		cfg := goodMeta()
		cfg.Dir, cfg.Cfs, cfg.Shapes = t.TempDir(), program, []string{ShapeStat}
		_, err := BenchMeta(t.Context(), cfg)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", program, err)
		}
		if names, err := os.ReadDir(cfg.Dir); err != nil || len(names) != 0 {
			t.Errorf("left behind: %v, %v", names, err)
		}
	}
}

func TestRawLogStartsAnew(t *testing.T) {
	r, err := newRawLog(context.Background(), filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	r.off = rawLogBytes
	if n, err := r.commit(); n != 1 || err != nil || r.off != rawCommitBytes {
		t.Errorf("%d, %v, at %d", n, err, r.off)
	}
}

// The kernel's count is of what a process does, not of what it says.
func TestCountSyncs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	// It waits for a line, so that it is counted from before its first sync. dd syncs at
	// its end: fdatasync, then fsync.
	cmd := exec.Command("sh", "-c", "read go; for c in fdatasync fsync fdatasync; do dd if=/dev/zero of="+path+" bs=1 count=1 conv=$c status=none || exit 1; done; echo done; read end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Wait()
	}()
	c, err := countSyncs(cmd.Process)
	if err != nil {
		t.Skip("the kernel does not count here: ", err)
	}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	if n, err := c.count(); n != 0 || err != nil {
		t.Errorf("before: %d, %v", n, err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	var line [16]byte
	if n, err := out.Read(line[:]); err != nil || string(line[:n]) != "done\n" {
		t.Fatalf("%q, %v", line[:n], err)
	}
	if n, err := c.count(); n != 3 || err != nil {
		t.Errorf("%d syncs, want 3: %v", n, err)
	}
}

func TestCountSyncsOfNobody(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := countSyncs(cmd.Process); err == nil {
		t.Error("a process that has ended is counted")
	}
}

// A voter that does not sync fails the bench.
func TestVotersMustSync(t *testing.T) {
	b := &metaBench{cluster: &voterSet{}}
	if err := b.judgeSyncs(Values{}, 0, []uint64{5, 5, 5}, []uint64{105, 106, 5}, 100); !errors.Is(err, cfs.Corrupt) {
		t.Errorf("%v", err)
	}
	v := Values{}
	if err := b.judgeSyncs(v, 1, []uint64{5, 5, 5}, []uint64{105, 205, 55}, 100); err != nil || v[LeaderSyncs] != 2 || v[LeastSyncs] != 0.5 {
		t.Errorf("%v, %v", v, err)
	}
}
