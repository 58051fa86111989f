package node

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// extents are a file's rows as the leader has them.
func extents(t *testing.T, addr string, i cfs.Ino) []cfs.Extent {
	t.Helper()
	reply := &wirepb.Answer{}
	q := &cfs.Query{Kind: cfs.QueryExtents, Ino: i, End: cfs.MaxFileSize}
	if err := call(t, addr, wire.OpQuery, wire.QueryToPB(q), reply); err != nil {
		t.Fatal(err)
	}
	a, err := wire.AnswerFromPB(reply)
	if err != nil || a.Kind != cfs.KindOK {
		t.Fatalf("extents: %v, %v", a, err)
	}
	return a.Extents
}

// overwrite changes blocks of a file and returns what it then holds.
func overwrite(t *testing.T, c *client.Client, name string, content []byte, step int) (cfs.Ino, []byte) {
	t.Helper()
	a, err := c.Lookup(t.Context(), cfs.RootIno, name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open(t.Context(), a.Ino, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	content = bytes.Clone(content)
	for at := 0; at < len(content); at += step {
		copy(content[at:at+cfs.BlockSize], fmt.Sprint("changed at ", at))
		if _, err := f.Write(t.Context(), content[at:at+cfs.BlockSize], uint64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a.Ino, content
}

// The node that leads restripes what was overwritten, and the next leader goes on. A
// node that cannot lead any more closes all the same.
func TestRestriper(t *testing.T) {
	dir := t.TempDir()
	addrs := freeAddrs(t, 3)
	var nodes []*Node
	for i, addr := range addrs {
		cfg := aloneConfig(t, mkdir(t, dir, fmt.Sprint(i+1)))
		cfg.NodeID, cfg.Listen, cfg.Seeds = cfs.NodeID(i+1), addr, addrs
		cfg.RestripeBytesPerSecond, cfg.RestripeAge = 64<<20, 200*time.Millisecond
		nodes = append(nodes, start(t, cfg))
	}
	led := func(but uint32) *Node {
		for i, addr := range addrs {
			if uint32(i+1) == but {
				continue
			}
			r := waitStatus(t, addr, func(r *wirepb.StatusReply) bool { return r.LeaderId != 0 && r.LeaderId != but })
			return nodes[r.LeaderId-1]
		}
		return nil
	}
	for _, addr := range addrs {
		waitStatus(t, addr, devicesUp(6))
	}
	c, err := client.New(t.Context(), client.Config{Servers: addrs, ClusterID: "one", Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(t.Context()); err != nil {
			t.Errorf("close the client: %v", err)
		}
	}()
	content := bytes.Repeat([]byte("claudefs"), 1<<17)
	rewritten := func(name string, leader *Node) {
		t.Helper()
		writeFile(t, c, name, content)
		ino, want := overwrite(t, c, name, content, 32<<10)
		waitFor(t, name+" is one stripe", func() bool {
			x := extents(t, leader.addr, ino)
			return len(x) == 1 && x[0].Kind == cfs.ExtentStripe
		})
		f, err := c.Open(t.Context(), ino, os.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := f.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s does not read back (%v)", name, err)
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "it is counted", func() bool {
			d := leader.stripes.done()
			return d.windows > 0 && d.bytes >= uint64(len(want))
		})
	}
	first := led(0)
	rewritten("first", first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := led(uint32(first.cfg.NodeID))
	rewritten("second", second)
	if d := first.stripes.done(); d.windows == 0 || first.stripes.now != nil {
		t.Errorf("the first leader is closed with %+v and a client %v", d, first.stripes.now)
	}
	for _, n := range nodes {
		if n != first && n != second {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// There is no quorum, but second may not know it yet; the test's cleanup closes it.
}
