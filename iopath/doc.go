// Package iopath moves bytes between memory and files through io_uring. It
// knows no file system: files are descriptors, addresses are offsets.
//
// There are four things in it.
//
// An [Arena] is one piece of page-aligned memory from which reference-counted
// [Buf]s are cut. It is registered with the rings, so that the kernel pins its
// pages once and not at every operation. A Buf has one block of headroom in
// front of its bytes: whoever stores it can put a header there and write both
// at once. [Arena.Held] names what has leaked.
//
// A [Ring] is an io_uring of our own on x/sys and mmap. An operation allocates
// nothing. Operations in flight are bounded by the ring's entries; further
// callers wait in their own calls, first come first served.
//
// An [Engine] is what nvme needs of a ring, and a [Commander] sends NVMe commands
// besides. Ring is the native engine, [Shards] several rings, one for each core;
// with the build tag iouringgo there is a reference to measure against. All pass
// the same conformance suite.
//
// A [Loop] is a ring of one thread that deals with each answer itself, for a driver
// that answers when it has something to ask: FUSE.
//
// # How a ring is driven
//
// A batch becomes a call, which queues for slots; a slot is one operation in
// flight. Queued calls are given slots, submitted and reaped by "pumping"
// (pump.go), under the ring's mutex. Who pumps is the difference between the shapes.
//
// Shared, the default, is for many goroutines. The first caller leads: until it
// has its own answer it waits in the kernel, as a plain read would, and reaps for
// all. It yields to the callers that it wakes, who queue their next operations,
// and submits those for them: under load most callers make no system call. Who
// comes while the leader waits submits for itself, in the same way. While nobody
// leads, a goroutine parked in Go's netpoller on an eventfd that the ring
// writes to reaps. The mutex is free during all of these system calls.
//
// [RingConfig.SingleIssuer] has a locked thread pump (issuer.go). The kernel then
// needs no lock and runs completions when they are asked for (SINGLE_ISSUER,
// DEFER_TASKRUN). A lone caller pays for waking that thread, so it is for large
// batches or many callers.
//
// [RingConfig.Poll] adds a ring whose thread polls the device instead of
// having it interrupt (IOPOLL). Reads and writes of files that can be polled go
// to it, everything else to the main ring; a file is probed when it is registered.
//
// What the kernel lacks of all this is found out when a ring is made, logged once
// and done without; Linux 5.6 is enough for a shared ring.
//
// # What blocks, and what deadlocks
//
// Arena.Get blocks while the arena is exhausted, first come first served. Do not
// hold one Buf while waiting for another in a service that others can fill:
// take all that an operation needs in one Get, or bound the operations.
//
// Ring calls return when the kernel has answered, and memory that was given to
// one belongs to the kernel until it returns. [Ring.Cancel] and
// [RingConfig.Timeout] ask the kernel to give an operation up. It does so with
// what it has not begun and with what waits for somebody (a pipe). It does not
// with what it has dispatched to a block device: the device may write into the
// memory at any time, so the call goes on until the device answers or its driver's
// own timeout ends it (30 s for NVMe by default). An operation on a device that
// hangs is therefore late, never lost, and its memory is never reused early.
//
// Lock order: none of the locks of Arena and Ring is held while another is taken.
package iopath
