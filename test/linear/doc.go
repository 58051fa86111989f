// Package linear tests that the namespace is linearizable: several clients work on it
// while the network is cut, nodes are killed and paused, clocks jump and disks are slow,
// and the whole history of what they asked and were told is then compared with models
// by porcupine (Athalye, https://github.com/anishathalye/porcupine).
//
// Clients are those of package client, with caches and leases, in this process; each
// node is a process in a network namespace of its own. What a client was not told the
// outcome of stays open: it may have happened at any time after it was asked, or never.
//
//	model_test.go    what a directory, a register and a lock answer
//	work_test.go     what the clients do, and the history of it
//	nemesis_test.go  what is broken meanwhile
//	linear_test.go   the tests, and proof that planted faults are seen
//
// Flags: -linear.time is how long each run takes, -linear.runs how many of each kind of
// fault there are, -linear.keep where histories of failed runs are kept.
package linear
