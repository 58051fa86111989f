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
	addrs, nodes := startNodes(t, t.TempDir(), 3, func(cfg *Config) {
		cfg.RestripeBytesPerSecond, cfg.RestripeAge = 64<<20, 200*time.Millisecond
	})
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
	c := connect(t, addrs)
	content := bytes.Repeat([]byte("claudefs"), 1<<17)
	rewritten := func(name string, leader *Node) {
		t.Helper()
		writeFile(t, c, name, content)
		ino, want := overwrite(t, c, name, content, 32<<10)
		waitFor(t, name+" is one stripe", func() bool {
			x := extents(t, leader.addr, ino)
			return len(x) == 1 && x[0].Kind == cfs.ExtentStripe
		})
		checkFile(t, c, ino, name, want)
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
