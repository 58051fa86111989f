// Package test holds the tests of whole clusters: real processes of the real
// binaries, started and broken by package cluster, with a kernel mount in front.
// They need root and /dev/fuse and say so where they are skipped.
//
//	cluster_test.go   every size of file, each node killed in turn, all killed at once
//	corrupt_test.go   bytes of live shards flipped on the devices
//	mounts_test.go    two mounts; the leader killed under writes
//	launcher_test.go  namespaces, proxies, clocks; demo up and down
package test
