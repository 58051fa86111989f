// Package planted is faults that are put into servers on purpose, to prove that the
// tests of linearizability see them. They exist in binaries built with the tag
// "planted" alone: in all others Is is false to the compiler, and the code is gone.
package planted

// The faults.
const (
	// StaleRead answers queries whether this node leads or not.
	StaleRead = "stale-read"
	// DroppedReply forgets the reply of a command at once: a retry is carried out again.
	DroppedReply = "dropped-reply"
	// LeaseIgnored makes changes without waiting for the leases that they conflict with.
	LeaseIgnored = "lease-ignored"
)

// Env is the environment variable that names the fault of a server.
const Env = "CLAUDEFS_PLANTED"
