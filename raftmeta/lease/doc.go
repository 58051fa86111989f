// Package lease is the leader's table of read leases, open files and recalls: who
// may answer what from memory, and who has to be told before it changes. It is pure:
// the time is passed in, it starts no goroutine and holds no lock (its caller does),
// and all it says to a waiter is a token in the waiter's own channel.
//
// # What is in it
//
// A session holds leases of keys: the attributes of an inode (with its extents), what is
// behind a name, all names of a directory. They live in the leader's memory alone. All of
// a session's leases lapse together, LeaseTime after the arrival of its last heartbeat
// that was confirmed. The session has a lease epoch, unique across leaders. A new epoch
// voids the session's leases: it is given where they lapsed while somebody waited, and
// where the session does not answer recalls though it goes on beating. In that case the old
// leases count until they lapse, or until the session uses the new epoch, which says that
// it has dropped them.
//
// A change begins with its keys: from then until its end nobody gets a lease of them, and
// the leases of other sessions are recalled. It has leave when all are given back or have
// lapsed: at most LeaseTime and a quarter of it later, since a heartbeat that finds a recall
// open for longer than that quarter does not renew.
//
// What is open is a key too, but never lapses: it goes when the session says so or ends.
// Where the session is silent, or has not come to this leader yet, a change goes on with a hold in
// its name instead. When that change has ended the session is asked again, under another number
// and told of the hold (Held), until it has answered: before it says that it does not have the inode open
// it releases the hold.
//
// A query registers before it reads, and says that its answer is leased only if the
// registration stands when it has read (Standing, Tell). A hold knows since which change of its
// session it stands, so that an answer which was read before one is never leased after it.
//
// # Order
//
// These are all the waits, each for what stands to its right:
//
//	a command -> earlier commands of the same names -> recalls -> an owner's surrender
//	a query   -> exclusive recalls, or commands that take the inode that it opens
//
// Commands that touch a name go in the order of arrival where one of them must look at
// what is behind it; a command enters the queues of all its names at once, so later ones
// wait for earlier ones alone. One that changes names of directories which its session owns enters none: the others
// of those names wait for the surrender, which comes after it. Acknowledging a recall of a read lease, or of an open
// inode, waits for nothing in the cluster, but that of a hold for its release; a session must not let
// other answers wait for that one. Serving the recall of an exclusive lease takes
// one command, on inodes that the session owns and with no name to look behind: nobody else
// has a lease of them, so it recalls nobody, waits for no other command, and ends the
// chain. So there is no cycle.
package lease
