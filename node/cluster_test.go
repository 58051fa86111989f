package node

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// freeAddrs are addresses that nobody listened on a moment ago.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// records is how many shards the devices of the nodes hold.
func records(nodes []*Node) int {
	sum := 0
	for _, n := range nodes {
		for _, id := range n.store.Devices() {
			stats, _ := n.store.Stats(id)
			sum += stats.Records
		}
	}
	return sum
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testPatience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

// startNodes starts a cluster in this process, each node with a directory of its own below dir.
func startNodes(t *testing.T, dir string, count int, change func(*Config)) (addrs []string, nodes []*Node) {
	t.Helper()
	addrs = freeAddrs(t, count)
	for i, addr := range addrs {
		cfg := aloneConfig(t, mkdir(t, dir, fmt.Sprint(i+1)))
		cfg.NodeID, cfg.Listen, cfg.Seeds = cfs.NodeID(i+1), addr, addrs
		change(&cfg)
		nodes = append(nodes, start(t, cfg))
	}
	return addrs, nodes
}

// connect is a client of a cluster, closed at the test's end, before nodes that were started before it.
func connect(t *testing.T, addrs []string) *client.Client {
	t.Helper()
	c := dial(t, addrs)
	t.Cleanup(func() { closeClient(t, c) })
	return c
}

// dial is a client of a cluster, to be closed while the cluster can commit.
func dial(t *testing.T, addrs []string) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), client.Config{Servers: addrs, ClusterID: "one", Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeClient(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Errorf("close the client: %v", err)
	}
}

// checkFile wants a file to read back.
func checkFile(t *testing.T, c *client.Client, ino cfs.Ino, what string, want []byte) {
	t.Helper()
	f, err := c.Open(t.Context(), ino, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	closeChecked(t, f, what, want)
}

// closeChecked wants a handle to read back, and closes it.
func closeChecked(t *testing.T, f *client.File, what string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := f.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("%s: %d bytes back, %v", what, n, err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Three nodes in this process: a file is striped over their devices, its shards
// go from all of them when it is deleted, and the two that are left find a new
// leader to live under.
func TestThreeNodes(t *testing.T) {
	addrs, nodes := startNodes(t, t.TempDir(), 3, func(*Config) {})
	writable := func(g cfs.Geometry) func(*wirepb.StatusReply) bool {
		return func(r *wirepb.StatusReply) bool {
			for _, pg := range r.GetMap().GetGroups() {
				if pg.Writable && pg.K == uint32(g.K) && pg.M == uint32(g.M) {
					return true
				}
			}
			return false
		}
	}
	for _, addr := range addrs {
		waitStatus(t, addr, writable(cfs.Geo4p2))
	}
	c := connect(t, addrs)
	want := bytes.Repeat([]byte("claudefs"), 1<<17) // 1 MiB: one stripe of 4+2
	writeFile(t, c, "first", want)
	if got := records(nodes); got != cfs.Geo4p2.Total() {
		t.Errorf("%d shards of one stripe", got)
	}
	if err := c.Unlink(t.Context(), cfs.Cred{}, cfs.RootIno, "first"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "no shard is left", func() bool { return records(nodes) == 0 })
	waitFor(t, "the cluster knows how far the devices came", func() bool {
		for _, n := range nodes {
			for _, id := range n.store.Devices() {
				if pos := n.store.FeedPosition(id); pos == 0 || n.feed.untold(id, pos) {
					return false
				}
			}
		}
		return true
	})
	led := waitStatus(t, addrs[0], func(r *wirepb.StatusReply) bool { return r.LeaderId != 0 }).LeaderId
	if err := nodes[led-1].Close(); err != nil {
		t.Fatal(err)
	}
	left := addrs[led%3]
	waitStatus(t, left, func(r *wirepb.StatusReply) bool {
		return r.LeaderId != 0 && r.LeaderId != led && devicesUp(4)(r) && writable(cfs.Geo2p2)(r)
	})
	writeFile(t, c, "second", want)
	waitFor(t, "the node that is left is healthy", func() bool { return nodes[led%3].healthy() == nil })
}

func writeFile(t *testing.T, c *client.Client, name string, content []byte) {
	t.Helper()
	a, err := c.Create(t.Context(), cfs.Cred{}, cfs.RootIno, name, cfs.ModeRegular|0o600, 0, "", true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open(t.Context(), a.Ino, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(t.Context(), content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeChecked(t, f, name, content)
}

// A socket in a data directory whose path is too long for one is refused before anything is made.
func TestLongDataDir(t *testing.T) {
	cfg := aloneConfig(t, t.TempDir())
	cfg.DataDir = filepath.Join(cfg.DataDir, string(bytes.Repeat([]byte("x"), maxSocketPath)))
	if n, err := Start(t.Context(), cfg); cfs.KindOf(err) != cfs.Usage {
		if err == nil {
			_ = n.Close()
		}
		t.Errorf("started with %v", err)
	}
}
