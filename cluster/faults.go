package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// FaultKind is what ails a server (Spec.Faults).
type FaultKind string

// The kinds of faults. Each is as large as a duration says.
const (
	FaultSlowReads FaultKind = "read"  // answers to reads of shards come so much later
	FaultSlowSyncs FaultKind = "sync"  // each sync of the Raft log takes so much longer
	FaultClock     FaultKind = "clock" // the wall clock is so far ahead, or behind
)

func (c *Cluster) faultDir() string { return filepath.Join(c.spec.Dir, "faults") }

// Fault makes a node suffer, or ends that with 0. The server sees it within some 20 ms.
func (c *Cluster) Fault(nodeID int, kind FaultKind, d time.Duration) error {
	if _, err := c.node(nodeID); err != nil {
		return err
	}
	path := filepath.Join(c.faultDir(), fmt.Sprintf("node-%d-%s", nodeID, kind))
	c.log.Info("fault", "node", nodeID, "kind", string(kind), "for", d)
	var err error
	if d == 0 {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		err = os.WriteFile(path, []byte(d.String()), 0o600)
	}
	if err != nil {
		return cfs.E("set a fault of node "+nodeName(nodeID), cfs.KindOf(err), err)
	}
	return nil
}

// cutTable is the nftables table of Cut in a node's namespace.
const cutTable = "claudefs_cut"

// Cut makes a node deaf to others: what they send it is dropped. Cutting both ways takes
// two calls, and a cut with one way open shows what a broken switch does. It needs
// Spec.Namespaces. Mend ends it.
func (c *Cluster) Cut(ctx context.Context, nodeID int, from ...int) error {
	var set []string
	for _, id := range from {
		if _, err := c.node(id); err != nil {
			return err
		}
		set = append(set, c.st.Network.addr(id))
	}
	c.log.Info("network cut", "node", nodeID, "deaf_to", from)
	return c.nft(ctx, nodeID, fmt.Sprintf("add table ip %[1]s; flush table ip %[1]s; "+
		"add chain ip %[1]s in { type filter hook input priority 0; }; add rule ip %[1]s in ip saddr { %[2]s } drop", cutTable, strings.Join(set, ", ")))
}

// Mend ends what Cut has done to a node.
func (c *Cluster) Mend(ctx context.Context, nodeID int) error {
	c.log.Info("network mended", "node", nodeID)
	return c.nft(ctx, nodeID, fmt.Sprintf("add table ip %[1]s; delete table ip %[1]s", cutTable))
}

// nft runs nft(8) in a node's namespace.
func (c *Cluster) nft(ctx context.Context, nodeID int, rules string) error {
	if _, err := c.node(nodeID); err != nil {
		return err
	}
	if c.st.Network == nil {
		return cfs.Errorf(fmt.Sprintf("cut the network of node %d", nodeID), cfs.Invalid, "it has no network namespace")
	}
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", c.st.Network.Namespaces[nodeID-1], "nft", rules).CombinedOutput()
	if err != nil {
		return cfs.Errorf("nft "+rules, cfs.IO, "%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}
