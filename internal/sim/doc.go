// Package sim simulates the machine below the system, in memory and from seeds,
// so that tests can look for what hardware does seldom.
//
// # Disk
//
// A [Disk] keeps apart what was written and what is durable. It promises what a
// disk with a volatile cache does, and everything that such a disk may do it
// does, by choice of the seed:
//
//   - A write that was answered is read back. It is durable once a flush that
//     began later was answered; if it had Sync, when it is answered itself.
//   - A power cut comes in the middle of any operation. Each write that is not
//     durable then is lost, kept, cut off at some sector, or kept in any of its sectors; and
//     they reach the medium in any order, so that an older one may win over a
//     newer one at the same place. What is durable stays.
//   - When the process is killed and the power stays, all that was written stays,
//     and is as durable as it was.
//   - Discarded sectors read as what they held, as zeros, or as garbage (random bytes, or
//     a copy of another place), each by itself, and always the same until they are written
//     again. A discard that was not flushed may not have happened after a power cut.
//   - Bits flip, sectors become unreadable, operations fail, the disk shrinks or vanishes:
//     when a test asks for it, see [Faults] and the methods of Disk.
//
// Writes that overlap and are under way at the same time take effect in the
// order in which they came to the disk.
//
//	d := sim.NewDisk(sim.DiskConfig{SizeBytes: 2 << 20, Seed: seed})
//	d.StopAfter(100)
//	... use d until it answers ErrStopped ...
//	d = d.AfterPowerCut() // or AfterKill
//
// # What the seed determines
//
// For one sequence of operations, as it comes to the disk, the seed determines
// every choice: which operations fail, where the machine stops when it stops
// at random, what survives, what discarded sectors hold, which bits flip. The choices of each kind
// come from a stream of their own: reading more does not change what
// a power cut leaves. The order in which several goroutines come to the disk is the
// scheduler's and not determined, although DiskConfig.Yields stirs it. So a
// test with one goroutine replays exactly from its seed, and one with
// several finds its failure again only with some probability.
//
// # Memory
//
// A disk takes memory for the blocks that were written and 16 bytes for each block that it
// could have; what was written once is shared by all disks that come from it.
package sim
