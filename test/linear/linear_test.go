package linear

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/cluster/demo"
	"github.com/claudefs/claudefs/internal/planted"
)

var (
	timeFlag = flag.Duration("linear.time", 15*time.Second, "how long each run takes")
	runsFlag = flag.Int("linear.runs", 0, "runs of each kind of fault; 0 is one run of all of them mixed")
	seedFlag = flag.Uint64("linear.seed", 0, "seed of the runs, 0 for a new one")
	keepFlag = flag.String("linear.keep", filepath.Join(os.TempDir(), "claudefs-linear"), "where histories of failed runs are kept")
)

// searchTime bounds the search for an order of one part of a history.
const searchTime = time.Minute

// binaries are cfs as it is, and with faults that can be planted.
var binaries [2]string

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	flag.Parse()
	if reason() != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "claudefs-test-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for i, tags := range []string{"", "planted"} {
		binaries[i] = filepath.Join(dir, "cfs"+tags)
		cmd := exec.Command("go", "build", "-tags", tags, "-o", binaries[i], "../../cmd/cfs")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build cfs: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// reason is why these tests cannot run here.
func reason() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "there is no " + tool
		}
	}
	return ""
}

// run lets clients work on a cluster of three for a time, does the evil, and returns
// the history.
func run(t *testing.T, binary string, env []string, seed uint64, kinds []evil, d time.Duration) *work {
	t.Helper()
	parent, err := os.MkdirTemp(demo.DefaultParent(), "claudefs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	c, err := cluster.Start(t.Context(), cluster.Spec{
		Dir: filepath.Join(parent, "c"), Binary: binary, Nodes: 3, Devices: 2, DeviceSizeBytes: 256 << 20,
		Namespaces: true, Faults: true, Env: env, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for n := range c.Nodes() {
				t.Logf("node %d (running: %v):\n%s", n+1, c.Alive(n+1), cluster.Tail(c.LogPath(n+1), 15))
			}
		}
		if err := c.Destroy(); err != nil {
			t.Error(err)
		}
	})
	all := make([]*client.Client, clients)
	for i := range all {
		all[i], err = client.New(t.Context(), client.Config{
			Servers: c.Addrs(), ClusterID: c.ClusterID(), Name: fmt.Sprint("client ", i), CacheTTL: client.MaxCacheTTL,
			MemoryBytes: client.MinMemoryBytes, Logger: slog.New(slog.DiscardHandler),
			WriteBehind: i%2 == 0, // sound, since no client crashes: what the caller was told others see when they ask
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &work{begun: time.Now(), fresh: worlds(all)}
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	n := &nemesis{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 2)), did: map[string]int{}}
	var wg sync.WaitGroup
	for i, cl := range all {
		own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		wg.Go(func() { w.run(ctx, i, cl, own) })
	}
	wg.Go(func() { n.run(ctx, kinds) })
	wg.Wait()
	for _, cl := range all {
		closing, cancel := context.WithTimeout(context.Background(), opTimeout)
		// What a client could not commit any more it has told, or nobody was told of.
		_ = cl.Close(closing)
		cancel()
	}
	t.Logf("seed %d: %d requests settled, %d open, in %v; %v", seed, w.settled, len(w.history)-w.settled, d, n.did)
	return w
}

// worlds makes one world after the other, each by another client, which owns it until others come.
func worlds(all []*client.Client) func(ctx context.Context) (*world, error) {
	id := 0
	return func(ctx context.Context) (*world, error) {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		id++
		c := all[id%len(all)]
		make := func(dir cfs.Ino, name string, mode uint32) (cfs.Ino, error) {
			a, err := c.Create(ctx, cfs.Cred{}, dir, name, mode, 0, "", true)
			return a.Ino, err
		}
		wd := &world{id: id}
		wd.left.Store(worldOps)
		top, err := make(cfs.RootIno, fmt.Sprint("world-", id), cfs.ModeDir|0o755)
		for _, x := range []struct {
			ino  *cfs.Ino
			name string
			mode uint32
		}{{&wd.dir, "dir", cfs.ModeDir | 0o755}, {&wd.mtime, "mtime", cfs.ModeRegular | 0o644}, {&wd.bytes, "bytes", cfs.ModeRegular | 0o644}, {&wd.lock, "lock", cfs.ModeRegular | 0o644}} {
			if err == nil {
				*x.ino, err = make(top, x.name, x.mode)
			}
		}
		if err == nil {
			err = c.SyncDir(ctx, top) // the clients get the inodes by their numbers, not by their names
		}
		if err == nil {
			_, err = c.SetAttr(ctx, cfs.Cred{}, wd.mtime, cfs.SetMtime, cfs.Attr{})
		}
		return wd, err
	}
}

// verdict looks for an order that explains a history; it returns what has none, and how
// many parts took too long to tell.
func verdict(t *testing.T, w *work) (illegal []string, untold int) {
	t.Helper()
	all := parts(w.history)
	for _, key := range inOrder(all) {
		switch res := porcupine.CheckOperationsTimeout(modelOf(partOf(key)), all[key], searchTime); res {
		case porcupine.Illegal:
			illegal = append(illegal, key)
		case porcupine.Unknown:
			untold++
		}
	}
	return illegal, untold
}

// keep writes a history that has no order down, to look at.
func keep(t *testing.T, w *work, key string, seed uint64) {
	t.Helper()
	ops := parts(w.history)[key]
	_, info := porcupine.CheckOperationsVerbose(modelOf(partOf(key)), ops, searchTime)
	if err := os.MkdirAll(*keepFlag, 0o755); err != nil {
		t.Error(err)
		return
	}
	base := filepath.Join(*keepFlag, fmt.Sprintf("%d-%s", seed, bytes.ReplaceAll([]byte(key), []byte("/"), []byte("-"))))
	if err := porcupine.VisualizePath(modelOf(partOf(key)), info, base+".html"); err != nil {
		t.Error(err)
	}
	var text bytes.Buffer
	for _, o := range ops {
		fmt.Fprintf(&text, "%d %d %d %s\n", o.ClientId, o.Call, o.Return, describe(o.Input, o.Output))
	}
	if err := os.WriteFile(base+".txt", text.Bytes(), 0o644); err != nil {
		t.Error(err)
	}
	t.Logf("the history is in %s.txt, and to look at in %s.html", base, base)
}

func newSeed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return rand.Uint64() >> 32
}

// TestLinearizable: no history without an order, whatever is broken meanwhile.
func TestLinearizable(t *testing.T) {
	if why := reason(); why != "" {
		t.Skip(why)
	}
	kinds, runs := []string{"mixed"}, 1
	if *runsFlag > 0 {
		kinds, runs = []string{"none", "partition", "pause", "kill", "clock", "disk", "mixed"}, *runsFlag
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			for range runs {
				seed := newSeed()
				w := run(t, binaries[0], nil, seed, evils[kind], *timeFlag)
				illegal, untold := verdict(t, w)
				for _, key := range illegal {
					t.Errorf("seed %d: no order explains what the clients were told of %s", seed, key)
					keep(t, w, key, seed)
				}
				for _, err := range w.strange {
					t.Errorf("seed %d: %v", seed, err)
				}
				if untold > 0 {
					t.Logf("seed %d: %d parts took too long to judge", seed, untold)
				}
				if w.settled == 0 {
					t.Errorf("seed %d: nothing was settled", seed)
				}
			}
		})
	}
}

// TestPlantedFaultsAreSeen: each fault that is planted in the servers is found within
// ten runs. It takes long: without -linear.runs the models alone are proved (TestModels).
func TestPlantedFaultsAreSeen(t *testing.T) {
	if why := reason(); why != "" {
		t.Skip(why)
	}
	if *runsFlag == 0 {
		t.Skip("without -linear.runs")
	}
	for _, c := range []struct {
		fault string
		evils string
	}{{planted.StaleRead, "leader"}, {planted.DroppedReply, "busy"}, {planted.LeaseIgnored, "none"}} {
		t.Run(c.fault, func(t *testing.T) {
			for try := 1; try <= 10; try++ {
				w := run(t, binaries[1], []string{planted.Env + "=" + c.fault}, newSeed(), evils[c.evils], *timeFlag)
				if illegal, _ := verdict(t, w); len(illegal) > 0 {
					t.Logf("seen in run %d: %v", try, illegal)
					return
				}
			}
			t.Error("not seen in ten runs")
		})
	}
}

// testWriter gives the launcher's log to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimRight(p, "\n")))
	return len(p), nil
}
