package node

import (
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// maxDevices bounds the devices of one node.
	maxDevices = 64
	// maxSeeds bounds the voters that a cluster starts with.
	maxSeeds = 9
	// maxSocketPath bounds the path of a unix socket: sun_path of unix(7) less the NUL.
	maxSocketPath = 107
	// maxClusterID bounds a cluster id, in bytes.
	maxClusterID = 63
)

// Config says which server to be. The zero value of an optional field is its default.
type Config struct {
	ClusterID string
	NodeID    cfs.NodeID
	Site      uint8
	Listen    string   // HOST:PORT; port 0 only without Seeds
	Advertise string   // HOST:PORT at which others reach the node, where that is not Listen
	DataDir   string   // made if it is missing
	Devices   []string // paths of files or block devices
	// Seeds are the addresses of the voters, HOST:PORT: node N is the N-th. Without
	// any the node is a cluster of its own and must be node 1.
	Seeds []string
	// Join are servers of a cluster that is there, HOST:PORT: the node joins it with devices alone, and
	// no voice in it. A data directory that has joined remembers that, and whom to ask.
	Join    []string
	joined  bool   // as the data directory says, or Join for a new one
	alone   bool   // Seeds name this node alone because none were given
	Metrics string // HOST:PORT of /metrics and /healthz; empty for none
	// Force formats devices that are formatted for another cluster.
	Force bool
	// SegmentBytes is the segment size of devices that are formatted now; 0 for the default.
	SegmentBytes uint32
	// RaftSegmentBytes is the segment size of the replica's log; 0 for the default.
	RaftSegmentBytes int64
	// ScrubBytesPerSecond bounds what is read of each device to compare its shards with
	// their checksums, once in store.DefaultScrubPause; 0 turns that off.
	ScrubBytesPerSecond int64
	// RestripeBytesPerSecond bounds what is read and written to restripe files, by the node
	// that leads; 0 turns that off.
	RestripeBytesPerSecond int64
	// RestripeAge is how long a file must not have changed before it is restriped, and how
	// long restriping rests when nothing is to be done; 0 for the client's defaults.
	RestripeAge time.Duration
	// ReclaimInterval is the least time between two comparisons of each device's shards with the
	// stripe table, which is longer where they take long; 0 for store.DefaultReclaimInterval.
	ReclaimInterval time.Duration
	// OutAfter is how long a device is down before its shards are made anew elsewhere; 0 for the default.
	OutAfter time.Duration
	// TLS makes the node's connections encrypted, and certificates say who is who. It is a choice
	// of the whole cluster, for good.
	TLS bool
	// BootstrapToken is a secret that the seed nodes of a new cluster share; empty: none.
	BootstrapToken string
	// Token is what the node gets its certificate for, where it has none that is of use.
	Token string
	// CertLifetime is how long certificates are valid that this node signs; 0 for the default.
	CertLifetime time.Duration
	// ClockOffset is added to every reading of the wall clock, for tests.
	ClockOffset time.Duration
	// ClockJump is added too, at each moment anew; nil: nothing is.
	ClockJump func() time.Duration
	// ReadDelay says how long the answer to a read of a shard is held back, for tests; nil: not at all.
	ReadDelay func() time.Duration
	// SyncDelay says how much longer a sync of the Raft log takes, for tests; nil: no longer.
	SyncDelay func() time.Duration
	Logger    *slog.Logger // nil discards
}

// CheckClusterID refuses what cannot be a cluster's id: 1 to 63 characters of [A-Za-z0-9._-]. It may
// become part of a path, so "." and ".." are none either.
func CheckClusterID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > maxClusterID {
		return cfs.Errorf("cluster id", cfs.Usage, "%q: want 1 to %d characters of A-Z a-z 0-9 . _ -", id, maxClusterID)
	}
	for _, c := range []byte(id) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
		if !ok {
			return cfs.Errorf("cluster id", cfs.Usage, "%q: want 1 to %d characters of A-Z a-z 0-9 . _ -", id, maxClusterID)
		}
	}
	return nil
}

// CheckAddr refuses what is not HOST:PORT; what names the address in the error.
func CheckAddr(what, addr string) error {
	_, _, err := splitAddr(what, addr)
	return err
}

func splitAddr(what, addr string) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(portText)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, cfs.Errorf(what, cfs.Usage, "%q is not HOST:PORT", addr)
	}
	return host, port, nil
}

// check refuses a configuration that cannot be meant, with an error of kind Usage.
func (c *Config) check() error {
	if err := CheckClusterID(c.ClusterID); err != nil {
		return err
	}
	if c.NodeID == 0 {
		return cfs.Errorf("node id", cfs.Usage, "want a number from 1 to 65535")
	}
	if c.DataDir == "" {
		return cfs.Errorf("data directory", cfs.Usage, "none given")
	}
	if path, err := filepath.Abs(filepath.Join(c.DataDir, socketFile)); err != nil || len(path) > maxSocketPath {
		return cfs.Errorf("data directory", cfs.Usage, "%s: the path of its socket would be longer than %d bytes", c.DataDir, maxSocketPath)
	}
	if c.Advertise != "" {
		if err := CheckAddr("advertised address", c.Advertise); err != nil {
			return err
		}
	}
	if c.Metrics != "" {
		if err := CheckAddr("metrics address", c.Metrics); err != nil {
			return err
		}
	}
	if err := c.checkDevices(); err != nil {
		return err
	}
	if c.ScrubBytesPerSecond < 0 {
		return cfs.Errorf("scrub rate", cfs.Usage, "%d bytes a second, want 0 or more", c.ScrubBytesPerSecond)
	}
	if c.RestripeBytesPerSecond < 0 {
		return cfs.Errorf("restripe rate", cfs.Usage, "%d bytes a second, want 0 or more", c.RestripeBytesPerSecond)
	}
	if c.ReclaimInterval < 0 {
		return cfs.Errorf("reclaim interval", cfs.Usage, "%s, want 0 or more", c.ReclaimInterval)
	}
	if c.BootstrapToken != "" && !c.TLS {
		return cfs.Errorf("bootstrap token", cfs.Usage, "a cluster without certificates has none")
	}
	if c.Token != "" && !c.TLS {
		return cfs.Errorf("token", cfs.Usage, "a cluster without certificates has none")
	}
	if c.OutAfter < 0 {
		return cfs.Errorf("time until out", cfs.Usage, "%s, want 0 or more", c.OutAfter)
	}
	return c.checkSeeds()
}

func (c *Config) checkDevices() error {
	if len(c.Devices) == 0 || len(c.Devices) > maxDevices {
		return cfs.Errorf("devices", cfs.Usage, "%d given, want 1 to %d", len(c.Devices), maxDevices)
	}
	seen := map[string]bool{}
	for _, p := range c.Devices {
		abs, err := filepath.Abs(p)
		if err != nil || p == "" {
			return cfs.Errorf("devices", cfs.Usage, "%q is not a path", p)
		}
		if seen[abs] {
			return cfs.Errorf("devices", cfs.Usage, "%s is given twice", p)
		}
		seen[abs] = true
	}
	return nil
}

func (c *Config) checkSeeds() error {
	host, port, err := splitAddr("listen address", c.Listen)
	if err != nil {
		return err
	}
	if c.joined {
		return c.checkJoined()
	}
	if len(c.Seeds) == 0 {
		if c.NodeID != 1 {
			return cfs.Errorf("node id", cfs.Usage, "node %d needs seed nodes: node N is the N-th of them", c.NodeID)
		}
		return nil
	}
	if len(c.Seeds) > maxSeeds {
		return cfs.Errorf("seed nodes", cfs.Usage, "%d given, want at most %d", len(c.Seeds), maxSeeds)
	}
	seen := map[string]bool{}
	for _, s := range c.Seeds {
		if err := CheckAddr("seed nodes", s); err != nil {
			return err
		}
		if seen[s] {
			return cfs.Errorf("seed nodes", cfs.Usage, "%s is given twice", s)
		}
		seen[s] = true
	}
	if int(c.NodeID) > len(c.Seeds) {
		return cfs.Errorf("node id", cfs.Usage, "node %d is not among the %d seed nodes: node N is the N-th of them", c.NodeID, len(c.Seeds))
	}
	return c.checkOwnSeed(c.Seeds[c.NodeID-1], host, port)
}

// checkOwnSeed holds the node's own address against its place among the seeds:
// what is advertised must be the same, what is listened on must answer there.
func (c *Config) checkOwnSeed(own, host string, port int) error {
	if c.Advertise != "" {
		if c.Advertise != own {
			return cfs.Errorf("advertised address", cfs.Usage, "%s is not that of node %d, which is %s by the seed nodes", c.Advertise, c.NodeID, own)
		}
		return nil
	}
	seedHost, seedPort, err := splitAddr("seed nodes", own)
	if err != nil {
		return err
	}
	if seedPort != port || !hostsMeet(host, seedHost) {
		return cfs.Errorf("listen address", cfs.Usage, "%s is not that of node %d, which is %s by the seed nodes", c.Listen, c.NodeID, own)
	}
	return nil
}

// hostsMeet reports that listening on one host answers at the other: the same
// name, any address, or names that share an address.
func hostsMeet(listen, seed string) bool {
	if listen == seed || listen == "" {
		return true
	}
	if ip := net.ParseIP(listen); ip != nil && ip.IsUnspecified() {
		return true
	}
	a, errA := net.LookupHost(listen)
	b, errB := net.LookupHost(seed)
	if errA != nil || errB != nil {
		return false
	}
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}
