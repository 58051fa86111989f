// Package iopath moves bytes between memory and files through io_uring. It
// knows no file system: files are descriptors, addresses are offsets.
//
// There are three things in it.
//
// An [Arena] is one piece of page-aligned memory from which reference-counted
// [Buf]s are cut. It is registered with the rings, so that the kernel pins its
// pages once and not at every operation. A Buf has one block of headroom in
// front of its bytes: whoever stores it can put a header there and write both
// at once.
//
// A [Ring] is an io_uring of our own on x/sys and mmap. Any number of goroutines
// share it: each submits under a mutex and reaps what has completed by then,
// and one goroutine, parked on the ring's descriptor in Go's netpoller, reaps
// the rest. An operation allocates nothing. Operations in flight are bounded
// by the ring's entries; further callers wait for room.
//
// An [Engine] is what nvme needs of a ring. Ring is the native engine; others
// are measured against it behind the same conformance suite.
//
// # What blocks, and what deadlocks
//
// Arena.Get blocks while the arena is exhausted, first come first served. Do not
// hold one Buf while waiting for another in a service that others can fill:
// take all that an operation needs in one Get, or bound the operations.
// Ring calls return when the kernel has answered; they cannot be cancelled, and
// memory that was given to one belongs to the kernel until it returns.
//
// Lock order: none of the locks here is held while another is taken.
package iopath
