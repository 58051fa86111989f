package cfs

// State is the health of a node or a device as the cluster has agreed on it.
type State uint8

// The states. Writes go to devices that are up; reads try up first.
const (
	StateUp State = iota + 1
	StateSuspect
	StateDown
	StateOut
)

// String is the form that people see.
func (s State) String() string {
	switch s {
	case StateUp:
		return "up"
	case StateSuspect:
		return "suspect"
	case StateDown:
		return "down"
	case StateOut:
		return "out"
	}
	return "unknown"
}

// Node is a server as the cluster knows it.
type Node struct {
	ID    NodeID
	Addr  string // HOST:PORT
	State State
	Voter bool
}

// Device is a device as the cluster knows it. Sizes are bytes.
type Device struct {
	ID       DeviceID
	UUID     UUID
	State    State
	Capacity uint64
	Used     uint64 // as its node last reported; not replicated
	FeedPos  uint64 // the delete feed is done up to here
}

// Slot is one place of a placement group. A filling slot takes puts and is
// being rebuilt; Source is then the device that it replaces.
type Slot struct {
	Device  DeviceID
	Filling bool
	Source  DeviceID
}

// PG is a placement group: an ordered list of slots; shard i of each of its
// stripes is on slot i. Epoch rises with every change. Only a Writable group
// takes new stripes; one that is not keeps those it has.
type PG struct {
	ID       PGID
	Geometry Geometry
	Slots    []Slot
	Epoch    Epoch
	Writable bool
}

// Map is the cluster's layout at a version. Version is the index of the last
// command that changed it.
type Map struct {
	ClusterID string
	Version   uint64
	Nodes     []Node
	Devices   []Device
	Groups    []PG
}

// Statfs is the space of the file system, in bytes and inodes. Total and Free
// are of raw capacity scaled by the geometry that a full stripe would use now.
type Statfs struct {
	TotalBytes uint64
	FreeBytes  uint64
	Inodes     uint64
}
