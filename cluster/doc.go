// Package cluster declares whole clusters on one machine and starts them: each
// node is a process of the real binary (`cfs server`), each mount a process of
// `cfs mount`, driven by exec and asked over package wire. The demo, the
// whole-cluster tests and benchmarks stand on it; nothing that serves imports it.
//
// A Spec says what is wanted; Start makes the device files, starts the
// processes and returns when the cluster is usable: every node and device up,
// a leader known, groups open for writing. Kill, Restart, KillAll and StartAll
// are the accidents, with Pause and Resume, LoseDevice and AddDevice; Mount and
// Remount are the clients. Each node may have a network namespace of its own, a
// clock that is off, and a proxy in front that delays, swallows, cuts or repeats
// what it is sent (package proxy).
//
// What belongs to a cluster is recorded in cluster.json in its directory, so
// that another process can Load and stop it. A process is signalled only if its
// start time is the recorded one: a pid that the kernel has given to somebody
// else since is left alone. Unless Spec.Detach is set, the processes die with
// the one that started them.
//
// A Cluster is not for use by several goroutines at once, except that Status,
// Metrics and Kill may run beside anything.
package cluster
