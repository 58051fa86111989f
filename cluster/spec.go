package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Bounds and defaults of a Spec.
const (
	// MaxNodes bounds the nodes of a cluster on one machine: every one is a voter, and a server takes so many.
	MaxNodes = 9
	// MaxDevices bounds the devices of a node.
	MaxDevices = 64
	// MinDeviceSizeBytes is the least device that is worth formatting.
	MinDeviceSizeBytes = 64 << 20
	// DefaultDeviceSizeBytes is the size of a device where the Spec names none.
	DefaultDeviceSizeBytes = 8 << 30
	// DefaultStartTimeout bounds how long Start waits for a usable cluster.
	DefaultStartTimeout = 60 * time.Second
)

// ClockOffsetEnv is the environment variable by which a server's clock is set
// off: a duration as time.ParseDuration reads it, added to every reading.
const ClockOffsetEnv = "CLAUDEFS_CLOCK_OFFSET"

// FaultDirEnv is the environment variable by which servers find what Fault writes.
const FaultDirEnv = "CLAUDEFS_FAULT_DIR"

// Spec declares a cluster on this machine.
type Spec struct {
	// Dir holds everything: device files, data directories, logs, mount points and the state file.
	Dir string
	// Binary is the path of `cfs`.
	Binary string
	// ClusterID is the cluster's name; a random one where empty.
	ClusterID string
	// Nodes and Devices (of each node) count from 1; 3 and 2 where zero.
	Nodes   int
	Devices int
	// DeviceSizeBytes is the size of each device file, which is sparse.
	DeviceSizeBytes int64
	// OtherSizeBytes are the sizes of devices that differ, by DevicePlace.
	OtherSizeBytes map[DevicePlace]int64
	// PrewriteBytes at the start of each device file are written once before the cluster starts,
	// because first writes to a sparse file cost the file system an allocation each.
	PrewriteBytes int64
	// Namespaces gives each node a network namespace of its own (needs root and ip(8)).
	Namespaces bool
	// Proxies puts a proxy.Proxy in front of each node, in this process; everybody, other nodes
	// included, reaches the node through it.
	Proxies bool
	// ClockOffsets sets the clocks of nodes off, by node number (1..Nodes).
	ClockOffsets map[int]time.Duration
	// Faults lets Fault trouble the servers while they run.
	Faults bool
	// TLS makes it a cluster with certificates; without, its servers are given --tls off.
	TLS bool
	// Authority is a directory with the ca.pem and ca-key.pem that node 1 begins with; where empty it makes its own.
	Authority string
	// Detach lets the processes live on when this one ends.
	Detach bool
	// ServerArgs and MountArgs are appended to the command lines.
	ServerArgs []string
	MountArgs  []string
	// Env is added to the environment of the servers, as KEY=VALUE.
	Env []string
	// StartTimeout bounds the wait for a usable cluster; DefaultStartTimeout where zero.
	StartTimeout time.Duration
	// Logger is told what is started, stopped and waited for; silent where nil.
	Logger *slog.Logger
}

// DevicePlace is a device file of a cluster: the node's number (from 1), the slot on it (from 0).
type DevicePlace struct{ Node, Slot int }

// deviceSize is the size of a device that the Spec asks for.
func (s *Spec) deviceSize(at DevicePlace) int64 {
	if n, ok := s.OtherSizeBytes[at]; ok {
		return n
	}
	return s.DeviceSizeBytes
}

// complete fills the defaults in and refuses what cannot be.
func (s *Spec) complete() error {
	const op = "declare a cluster"
	if s.Nodes == 0 {
		s.Nodes = 3
	}
	if s.Devices == 0 {
		s.Devices = 2
	}
	if s.DeviceSizeBytes == 0 {
		s.DeviceSizeBytes = DefaultDeviceSizeBytes
	}
	if s.StartTimeout == 0 {
		s.StartTimeout = DefaultStartTimeout
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case s.Dir == "":
		return cfs.Errorf(op, cfs.Usage, "no directory is named")
	case s.Binary == "":
		return cfs.Errorf(op, cfs.Usage, "no binary is named")
	case s.Nodes < 1 || s.Nodes > MaxNodes:
		return cfs.Errorf(op, cfs.Usage, "%d nodes: between 1 and %d are possible", s.Nodes, MaxNodes)
	case s.Devices < 1 || s.Devices > MaxDevices:
		return cfs.Errorf(op, cfs.Usage, "%d devices a node: between 1 and %d are possible", s.Devices, MaxDevices)
	case s.DeviceSizeBytes < MinDeviceSizeBytes:
		return cfs.Errorf(op, cfs.Usage, "devices of %d bytes: at least %d are needed", s.DeviceSizeBytes, int64(MinDeviceSizeBytes))
	case s.PrewriteBytes < 0 || s.PrewriteBytes > s.DeviceSizeBytes:
		return cfs.Errorf(op, cfs.Usage, "%d bytes to prewrite on devices of %d", s.PrewriteBytes, s.DeviceSizeBytes)
	}
	if _, ok := BestGeometry(s.Nodes, s.Devices); !ok {
		return cfs.Errorf(op, cfs.Usage, "%d nodes of %d devices cannot hold anything redundantly: at least 3 devices on 2 nodes are needed", s.Nodes, s.Devices)
	}
	for at, n := range s.OtherSizeBytes {
		if at.Node < 1 || at.Node > s.Nodes || at.Slot < 0 || at.Slot >= s.Devices {
			return cfs.Errorf(op, cfs.Usage, "a size for device %d of node %d, which there is not", at.Slot, at.Node)
		}
		if n < MinDeviceSizeBytes {
			return cfs.Errorf(op, cfs.Usage, "a device of %d bytes: at least %d are needed", n, int64(MinDeviceSizeBytes))
		}
	}
	for n := range s.ClockOffsets {
		if n < 1 || n > s.Nodes {
			return cfs.Errorf(op, cfs.Usage, "a clock offset for node %d of %d", n, s.Nodes)
		}
	}
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	s.Dir = dir
	if s.ClusterID == "" {
		s.ClusterID = "local-" + randomToken(4)
	}
	return nil
}

// randomToken is n random bytes in hexadecimal.
func randomToken(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
