// Package node is one server process: it joins the shard service and the
// namespace's replica behind one listener, and tells the cluster that it lives.
//
// [Run] is the whole life: [Start], wait, [Node.Close]. Start changes nothing
// before everything that can be refused has been looked at, in this order: the
// configuration, the addresses (so that a port in use is found first), the data
// directory (locked; it belongs to one node of one cluster for good), then every
// device. Only then are blank devices formatted, the logs opened and the replica
// started; requests are answered last.
//
// A node's data directory holds node.json (who the node is, and which device is
// in which slot; a slot is never used twice), the replica's state, and node.sock,
// the same service for processes of this machine.
//
// Beside the requests, the heartbeat tells the leader that the node and its devices
// live, the feed deletes the shards of stripes that nothing references any more, the
// store scrubs and mends, the restriper, while the node leads, writes files anew
// whose extents could lie better (it is a client of its own cluster, by node.sock),
// and the metrics server answers /metrics and /healthz. Close ends them first, then the replica (which hands its leadership
// over), requests, the logs, the devices, the memory: nothing is closed while
// something above may use it.
//
// Who is who: a node has a certificate (pki), which it makes, or gets from node 1, when the cluster begins, and renews
// by itself (security.go, whose head says how a cluster begins). What a peer may ask for by its role is
// one table (authz.go); for each request it is asked besides whether the peer's key was revoked, and
// of a server whether its number is in the map.
//
// # A part in the log
//
// A node has a replica (replica.go) if it founded the cluster or was made a voter since; any other asks the
// leader for the map when a heartbeat says that there is a newer one. It opens a replica when the map
// says that it is a learner, and deletes it when it is removed from the voters. A node that joins
// (join.go) asks a server of the cluster what it is called and whether the node id is free; its data
// directory remembers that and all else that a start needs.
//
// # Devices that come and go
//
// A device is added while the node runs ([wire.VerbDeviceAdd]) by the functions and under the rules
// of the start. There is memory for a bounded number of them; the next start
// opens them too, and makes room for as many again. An administrator who adds a device
// need not change the command line, but can: it is the same device.
//
// A device that the cluster has removed (its state is out) stays open for as long as a slot of
// a group has it, or is filled from it. Then the node closes it and says so in
// its log, and it can be taken off the command line and out of the machine. While it
// is named there, the next start opens it, or goes on without it if it is broken, and closes it again.
// It comes back only when it is added by force, which formats it: as another device, in another slot.
//
// Start at node.go, then devices.go and admin.go.
package node
