package wire

import (
	"math"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// MaxSlots bounds the slots of a placement group: no geometry has more.
const MaxSlots = 255

// maxAddr bounds a node's address, in bytes.
const maxAddr = 300

// NodeToPB is the node as a message.
func NodeToPB(n cfs.Node) *wirepb.Node {
	return &wirepb.Node{Id: uint32(n.ID), Addr: validUTF8(n.Addr), State: uint32(n.State), Voter: n.Voter, Learner: n.Learner}
}

// NodeFromPB checks a message and is the node in it.
func NodeFromPB(m *wirepb.Node) (cfs.Node, error) {
	r := refusal{op: "decode node"}
	n := r.node(m)
	return n, r.err
}

func (r *refusal) node(m *wirepb.Node) cfs.Node {
	r.check(m.GetId() != 0, "node id 0")
	r.check(len(m.GetAddr()) <= maxAddr, "address of %d bytes, at most %d", len(m.GetAddr()), maxAddr)
	return cfs.Node{ID: cfs.NodeID(r.narrow16("node id", m.GetId())), Addr: m.GetAddr(), State: r.state(m.GetState()), Voter: m.GetVoter(), Learner: m.GetLearner()}
}

// state takes 0 for one that is not known.
func (r *refusal) state(v uint32) cfs.State {
	r.check(v <= uint32(cfs.StateOut), "state %d", v)
	return cfs.State(v)
}

// DeviceToPB is the device as a message.
func DeviceToPB(d cfs.Device) *wirepb.Device {
	m := &wirepb.Device{Id: uint32(d.ID), State: uint32(d.State), Capacity: d.Capacity, Used: d.Used, FeedPos: d.FeedPos, Draining: d.Draining, Full: d.Full}
	if d.UUID != (cfs.UUID{}) {
		m.Uuid = d.UUID[:]
	}
	return m
}

// DeviceFromPB checks a message and is the device in it.
func DeviceFromPB(m *wirepb.Device) (cfs.Device, error) {
	r := refusal{op: "decode device"}
	d := r.device(m)
	return d, r.err
}

func (r *refusal) device(m *wirepb.Device) cfs.Device {
	d := cfs.Device{ID: cfs.DeviceID(m.GetId()), State: r.state(m.GetState()), Capacity: m.GetCapacity(), Used: m.GetUsed(), FeedPos: m.GetFeedPos(),
		Draining: m.GetDraining(), Full: m.GetFull()}
	r.check(d.ID.Node() != 0, "device %v of node 0", d.ID)
	r.check(len(m.GetUuid()) == 0 || len(m.GetUuid()) == len(d.UUID), "uuid of %d bytes", len(m.GetUuid()))
	copy(d.UUID[:], m.GetUuid())
	return d
}

func groupToPB(g cfs.PG) *wirepb.PG {
	return &wirepb.PG{
		Id: uint32(g.ID), K: uint32(g.Geometry.K), M: uint32(g.Geometry.M), Epoch: uint32(g.Epoch), Writable: g.Writable,
		Slots: list(g.Slots, func(s cfs.Slot) *wirepb.Slot {
			return &wirepb.Slot{Device: uint32(s.Device), Filling: s.Filling, Source: uint32(s.Source)}
		}),
	}
}

func (r *refusal) group(m *wirepb.PG) cfs.PG {
	g := cfs.PG{
		ID: cfs.PGID(m.GetId()), Geometry: cfs.Geometry{K: r.narrow8("data shards", m.GetK()), M: r.narrow8("parity shards", m.GetM())},
		Epoch: cfs.Epoch(m.GetEpoch()), Writable: m.GetWritable(),
	}
	r.check(g.Geometry.K > 0 && g.Geometry.Total() <= MaxSlots && len(m.GetSlots()) == g.Geometry.Total(), "group %d: geometry %v with %d slots", g.ID, g.Geometry, len(m.GetSlots()))
	g.Slots = list(m.GetSlots(), func(s *wirepb.Slot) cfs.Slot {
		return cfs.Slot{Device: cfs.DeviceID(s.GetDevice()), Filling: s.GetFilling(), Source: cfs.DeviceID(s.GetSource())}
	})
	return g
}

// MapToPB is the map as a message.
func MapToPB(m *cfs.Map) *wirepb.Map {
	return &wirepb.Map{
		ClusterId: validUTF8(m.ClusterID), Version: m.Version,
		Nodes: list(m.Nodes, NodeToPB), Devices: list(m.Devices, DeviceToPB), Groups: list(m.Groups, groupToPB),
		Jobs: list(m.Jobs, jobToPB), TlsOff: m.TLSOff, Revoked: list(m.Revoked, nameToPB), Ca: nameToPB(m.CA),
	}
}

// MapFromPB checks a message and is the map in it.
func MapFromPB(m *wirepb.Map) (*cfs.Map, error) {
	r := refusal{op: "decode map"}
	out := r.clusterMap(m)
	if r.err != nil {
		return nil, r.err
	}
	return out, nil
}

func (r *refusal) clusterMap(m *wirepb.Map) *cfs.Map {
	r.check(len(m.GetNodes()) <= math.MaxUint16, "%d nodes", len(m.GetNodes()))
	r.check(len(m.GetClusterId()) <= maxHelloName, "cluster id of %d bytes", len(m.GetClusterId()))
	return &cfs.Map{
		ClusterID: m.GetClusterId(), Version: m.GetVersion(),
		Nodes: list(m.GetNodes(), r.node), Devices: list(m.GetDevices(), r.device), Groups: list(m.GetGroups(), r.group),
		Jobs: list(m.GetJobs(), r.job), TLSOff: m.GetTlsOff(), CA: r.label("fingerprint", m.GetCa()), Revoked: list(m.GetRevoked(), func(b []byte) string { return r.label("key", b) }),
	}
}

func jobToPB(j cfs.Job) *wirepb.Job {
	return &wirepb.Job{
		Device: uint32(j.Device), Kind: uint32(j.Kind), State: uint32(j.State), RateBytes: j.RateBytes,
		DoneBytes: j.DoneBytes, TotalBytes: j.TotalBytes, StartedNs: j.StartedNS, ChangedNs: j.ChangedNS,
	}
}

func (r *refusal) job(m *wirepb.Job) cfs.Job {
	r.check(cfs.DeviceID(m.GetDevice()).Node() != 0, "job of device %v", cfs.DeviceID(m.GetDevice()))
	r.check(m.GetKind() >= uint32(cfs.JobRebuild) && m.GetKind() <= uint32(cfs.JobRebalance), "job kind %d", m.GetKind())
	r.check(m.GetState() >= uint32(cfs.JobRunning) && m.GetState() <= uint32(cfs.JobCancelled), "job state %d", m.GetState())
	return cfs.Job{
		Device: cfs.DeviceID(m.GetDevice()), Kind: cfs.JobKind(m.GetKind()), State: cfs.JobState(m.GetState()), RateBytes: m.GetRateBytes(),
		DoneBytes: m.GetDoneBytes(), TotalBytes: m.GetTotalBytes(), StartedNS: m.GetStartedNs(), ChangedNS: m.GetChangedNs(),
	}
}

// ShardKeyToPB names a shard of a stripe.
func ShardKeyToPB(s cfs.StripeID, shard uint8) *wirepb.ShardKey {
	return &wirepb.ShardKey{StripeSession: uint64(s.Session), StripeCounter: s.Counter, Shard: uint32(shard)}
}

// ShardKeyFromPB checks a shard's name and is its stripe and number.
func ShardKeyFromPB(m *wirepb.ShardKey) (cfs.StripeID, uint8, error) {
	r := refusal{op: "decode shard key"}
	r.check(m != nil, "no key")
	s := cfs.StripeID{Session: cfs.SessionID(m.GetStripeSession()), Counter: m.GetStripeCounter()}
	shard := r.narrow8("shard", m.GetShard())
	return s, shard, r.err
}
