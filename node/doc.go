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
// Three goroutines work beside the requests: the heartbeat tells the leader that
// the node and its devices live, the feed deletes the shards of stripes that
// nothing references any more, and the metrics server answers /metrics and
// /healthz. Close ends them first, then the replica (which hands its leadership
// over), requests, the logs, the devices, the memory: nothing is closed while
// something above may use it.
//
// Start at node.go, then devices.go.
package node
