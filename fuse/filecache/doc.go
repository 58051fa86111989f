// Package filecache keeps whole files of one cluster in a directory of this machine, for whoever reads
// them there: the kernel, for a front end that lets it (passthrough).
//
//	filecache.go  Cache: the directory, what it holds, how much
//	key.go        which version of which file a name stands for
//	fill.go       how a file gets in
//	file.go       how one is used, and when that ends
//	stats.go      figures
//
// # The directory
//
//	DIR/cluster   whose files these are; a directory of another cluster is refused
//	DIR/lock      locked while a cache has it: two mounts do not share one
//	DIR/files/    a regular file for each that is complete, and NAME.part for what is being filled
//
// There is no index but the names. A name says inode, generation, times and size (see Key); a file has it
// once all its bytes are on the disk (fdatasync, then rename), so whatever else a crash leaves, a name is true. What is not complete is removed
// at the start. The time of a file is when it was last used, to within minUseAge: the order of eviction outlives a restart.
//
// What is kept is what somebody else has checked: the bytes came from the cluster by its checksums, and from
// then on they are worth what the local disk is worth.
//
// # Files in use
//
// A File stays as it is until Close, in the directory or not: to evict or replace a file takes its name alone. Whoever is
// going to change one in place first detaches it: its name goes, durably, before a byte of it is other than the name says.
package filecache
