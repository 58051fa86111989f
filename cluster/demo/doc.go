// Package demo is `cfs demo`: a cluster on this machine that does real work, is
// broken on purpose, and must give back every byte.
//
// Run goes through the steps of demo.go in order; each prints what it did, and
// the first that fails ends the demo. What is in the mount is recorded in a
// manifest (manifest.go) as it is written, from its source and never from the
// mount, and every verification reads all of it through a mount that was made
// anew, so that the bytes come from the devices and not from a cache. The
// counters of the mount's daemon prove that they did.
//
// Rates are taken beside fio on the same disk in the same run (rates.go). A rate
// below its target is printed as missed; only wrong bytes, errors and operations
// that never end fail the demo.
//
// Up and Down are the cluster alone, for people, tests and benchmarks.
package demo
