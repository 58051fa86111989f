// Package raftmeta is the metadata service of one server: the shell around
// go.etcd.io/raft/v3 that turns package fsm, which is pure, into a replicated,
// durable and linearizable namespace. Every voter runs one Node.
//
// # Shape
//
// One goroutine, the loop (loop.go), owns the Raft state, the log and all
// writing to the state store. It takes whatever has gathered in its inputs
// (messages, proposals, reads, ticks), hands it to Raft at once, and then deals
// with what Raft makes ready (ready.go): one write and one fdatasync for all
// new entries, messages to the other voters before that sync on the leader and
// after it on a follower, and one batch of the state store for all entries that
// are committed. So commits batch by themselves under load and wait for nobody
// without. The state store has no log of its own: the Raft log is replayed over
// the applied index that the store holds, and is truncated (compact.go) only
// below an applied index that has been flushed.
//
//	entry.go     an entry's bytes
//	propose.go   commands: admission, waiting, answering
//	read.go      queries: batched ReadIndex, then a view of the store
//	leases.go    commands wait for other sessions' leases (package lease), behind.go says of what
//	grant.go     queries get leases, and ask those who own what they see
//	recall.go    recalls on their way to sessions, and their answers
//	peer.go      messages to and from the other voters
//	snapshot.go  the whole state to a voter that the log no longer helps
//	current.go   which state directory is the valid one, across crashes
//	duties.go    what only the leader does: sessions, nodes, groups, reaping
//	jobs.go      and its jobs: devices that are given up, rebuilt, drained, filled
//	admin.go     what an administrator asks of the leader
//	journal.go   readers of the journal, and what is told of sessions
//	top.go       what a node has done, for people who look at it
//	locks.go     waits for locks, and whether they would ever end
//	enrol.go     certificates for tokens, and what administrators ask of those
//	members.go   who votes, and changes of that; admin_members.go what an administrator asks of it
//	standing.go  whether this replica's directory is trusted
//	space.go     a disk that is full or slow
//	check.go     a replica's tables compared with each other, on request
//	serve.go     requests from the wire
//	open.go      start: recovery and its checks
//	bulk.go      a large namespace made as the voters' state, to be measured
//
// # Who waits for whom
//
// The loop never waits for a goroutine, except for a state store that is being
// replaced by a snapshot (queries that run finish first). It writes messages to
// the other voters' sockets itself, as one-way frames, which never wait for the
// peer; a connection's reader puts those that come into the loop's inbox, and
// drops what has no room there. Handlers wait for the
// loop through channels with room for one answer, so the loop never blocks on
// a handler. Duties propose as any client does and may be behind; they never
// hold their lock while they propose. Only the duties' goroutine proposes changes of
// nodes, devices and jobs, an administrator's too: what it has read of them when it
// proposes is still so. Lock order: lockWaits.turn, then a view of the state, then lockWaits.mu; the loop
// takes duties.mu, leases.mu and lockWaits.mu alone, for moments, and nothing under them.
//
// # Membership
//
// The members (voters, and learners that become voters) are rows of the state, changed by
// Raft's own entries, one member at a time; Raft's membership is that of the rows at the applied
// index, after a start too. A cluster begins with its seeds, at log index 1: whoever has no state is
// before that, and is given one by a snapshot, never entries alone. A learner that has caught up is
// made a voter by the leader's duties, and the voter that it replaces goes after that. The leader
// hands its leadership over before it goes itself. A replica that is removed ends with ErrRemoved,
// when it applies that, or asks where it stands (it does wherever it hears of no leader). A voter that was off
// during a change follows whoever leads since, and votes for it: requests are taken from any server, which says in
// its messages where it is reached, and answers only from members.
//
// Each start of a replica has a name, which the leader records if the name recorded before is one that
// the directory knows (standing.go). So these are refused, as Conflict:
//
//   - an empty directory of a member whose start the leader has recorded: by any leader; before there is one it
//     does not vote, unless every seed says that the cluster is being made;
//   - a copy of a directory from before its last start: by any leader;
//   - a copy from when this node was the only voter, where the server remembers others (Config.Known) and one of them
//     answers within alonePatience;
//   - a copy from since its last start: by the leader that had its acknowledgements, or because
//     Raft finds that the log ends before what is committed.
//
// Not found are: a copy from since the last start under a leader elected later, where the log is within
// what that leader still sends (it catches up then; it could have voted before the leader heard of it); an
// old copy that votes while no leader is there; a directory lost before its first start was recorded; and the
// loss of a majority of the seeds' directories while the others are off.
//
// # Failure
//
// A log that cannot be written, an entry that cannot be understood or a state
// store that contradicts itself ends the Node: it answers nothing any more, Err
// says why, and Done is closed. It never acknowledges what is not durable on a
// majority.
package raftmeta
