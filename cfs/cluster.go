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
	// Learner says that it is to become a voter, and catches up.
	Learner bool
}

// Device is a device as the cluster knows it. Sizes are bytes.
type Device struct {
	ID       DeviceID
	UUID     UUID
	State    State
	Capacity uint64
	Used     uint64 // as its node last reported; not replicated
	FeedPos  uint64 // the delete feed is done up to here
	Draining bool   // an administrator removes it: its shards go elsewhere, and it takes no new ones
	Full     bool   // it has no room for more, as its node reports
}

// Usable reports that a device may be given new shards, as far as it goes.
func (d *Device) Usable() bool {
	return (d.State == StateUp || d.State == StateSuspect) && !d.Draining && !d.Full
}

// Leaving reports that the shards of a device must go elsewhere.
func (d *Device) Leaving() bool { return d.Draining || d.State == StateOut }

// Removed reports that a device is out because an administrator wants it so: one that is out
// since it was down for long is let in again when its node reports it.
func (d *Device) Removed() bool { return d.State == StateOut && d.Draining }

// JobKind is what a job does for its device.
type JobKind uint8

// The kinds of jobs.
const (
	JobRebuild   JobKind = iota + 1 // computes the shards of a lost device anew, elsewhere
	JobDrain                        // moves the shards of a device elsewhere
	JobRebalance                    // moves shards to a device that was added
)

// String is the form that people see.
func (k JobKind) String() string {
	switch k {
	case JobRebuild:
		return "rebuild"
	case JobDrain:
		return "drain"
	case JobRebalance:
		return "rebalance"
	}
	return "unknown"
}

// JobState is how far a job is.
type JobState uint8

// The states of a job. One that was cancelled leaves things as they are until the device is
// drained or added again.
const (
	JobRunning JobState = iota + 1
	JobPaused
	JobDone
	JobCancelled
)

// String is the form that people see.
func (s JobState) String() string {
	switch s {
	case JobRunning:
		return "running"
	case JobPaused:
		return "paused"
	case JobDone:
		return "done"
	case JobCancelled:
		return "cancelled"
	}
	return "unknown"
}

// Job is long work for one device; a device has at most one. Bytes are those of
// shards on devices. The times are those of the commands that changed its state.
type Job struct {
	Device     DeviceID
	Kind       JobKind
	State      JobState
	RateBytes  uint64 // bound of what each node moves for it in a second, 0 for none
	DoneBytes  uint64
	TotalBytes uint64
	StartedNS  int64
	ChangedNS  int64
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
	Jobs      []Job
	TLSOff    bool     // the cluster was made without certificates
	Revoked   []string // ids of keys that are refused, whatever certificates they have
	CA        string   // fingerprint of the authority that signs certificates; empty until it is recorded, and without certificates
}

// Statfs is the space of the file system, in bytes and inodes. Total and Free
// are of raw capacity scaled by the geometry that a full stripe would use now.
type Statfs struct {
	TotalBytes uint64
	FreeBytes  uint64
	Inodes     uint64
}
