package raftmeta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// A write of the log that finds no room ends the replica, and says so; with room it starts again.
func TestLogWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skip("no small disk: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Dir = filepath.Join(dir, "raft")
		cfg.FreeSpace = func(string) (uint64, uint64, error) { return 1 << 39, 1 << 40, nil } // it is found by the write alone
		cfg.CompactEntries, cfg.CompactBytes = 1<<40, 1<<40                                   // which no truncation of the log makes room for
	})
	s := c.session()
	c.mustCreate(s, 1, "before")
	fill := filepath.Join(dir, "fill")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	one := c.members[0]
	big := strings.Repeat("x", 60<<10)
	for i := uint64(0); one.node.Err() == nil && i < 200; i++ {
		ctx, cancel := contextWithin(patience)
		cmd := &cfs.Command{Session: s, Seq: 2 + i, LowWater: 2 + i, Ops: []cfs.Op{
			{Kind: cfs.OpSetXattr, Ino: cfs.RootIno, Name: fmt.Sprint("user.", i%8), Value: []byte(big)}}}
		body, err := proto.Marshal(wire.CommandToPB(cmd))
		if err != nil {
			t.Fatal(err)
		}
		_, err = one.node.command(ctx, cmd, body)
		cancel()
		if err != nil {
			<-one.node.Done()
		}
	}
	if err := one.node.Err(); !errors.Is(err, cfs.NoSpace) || !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(), "broken") {
		t.Errorf("it ended with %v", err)
	}
	// Before the end, which is to close the store at once.
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	endStopped(one)
	one.node = nil
	c.start(one, nil)
	c.mustFind("before")
}
