package wire

// Verb is what an Admin request asks for. The numbers are stable.
type Verb uint32

// The verbs. Each line says who carries it out and which fields of wirepb.Admin it reads.
const (
	// VerbDeviceAdd opens a device, formats it if it is blank, and serves it; the server that is asked {Path, Force}.
	VerbDeviceAdd Verb = iota + 1
	// VerbDeviceRemove moves the shards of a device elsewhere, or computes them anew where it is lost; the leader {Device}.
	VerbDeviceRemove
	// VerbJobPause, VerbJobResume and VerbJobCancel change the job of a device; the leader {Device}.
	VerbJobPause
	VerbJobResume
	VerbJobCancel
	// VerbJobRate bounds what each node moves for a job in a second; the leader {Device, RateBytes: 0 for no bound}.
	VerbJobRate
	// VerbScrub begins a pass of the scrub now; the server that is asked {Device: 0 for all of it}.
	VerbScrub
	// VerbReconcile compares all shards with the stripe table now; the server that is asked {Device: 0 for all of it}.
	VerbReconcile
	// VerbNodeDrain drains every device of a node, and VerbNodeRemove forgets one that is empty; the leader {Node}.
	VerbNodeDrain
	VerbNodeRemove
	// VerbVoterAdd makes a node a voter, once it has caught up as a learner; the leader {Node}.
	VerbVoterAdd
	// VerbVoterRemove makes a voter a node that only stores; the leader {Node}.
	VerbVoterRemove
	// VerbVoterReplace does both, the new one first; the leader {Node: the old one, Other: the new one}.
	VerbVoterReplace
	// VerbTokenCreate makes a token {Role, TTLMS}: AdminReply.Token; the leader.
	VerbTokenCreate
	// VerbTokenRemove {Text: its id}; the leader.
	VerbTokenRemove
	// VerbRevoke refuses a key {Text: its id}; the leader.
	VerbRevoke
	// VerbSessionExpire ends a session {Session}; the leader.
	VerbSessionExpire
	// VerbConsumerAdd and VerbConsumerRemove register a consumer of the journal {Text: its name}; the leader.
	VerbConsumerAdd
	VerbConsumerRemove
)

// RecallKind is what a session is to give back, or to tell. The numbers are stable.
type RecallKind uint32

// The kinds of recalls. Each line says which fields of wirepb.Recall it reads.
const (
	// RecallAttr: the attributes and extents of {Ino} change.
	RecallAttr RecallKind = iota + 1
	// RecallName: the name {Dir, Name} changes.
	RecallName
	// RecallList: names of {Dir} change.
	RecallList
	// RecallOpen: {Ino} loses its last name; is it open? AckOpen or AckDropped.
	RecallOpen
	// RecallReport: somebody asks for the attributes of {Ino}, of which the session has the exclusive lease: AckReport.
	RecallReport
	// RecallExclusive: somebody needs {Ino}: what is kept back is to be committed, and the exclusive lease surrendered.
	RecallExclusive
)

// AckKind is how a recall is answered. The numbers are stable.
type AckKind uint32

// The answers to recalls.
const (
	AckDropped AckKind = iota + 1 // the lease is given back, or the inode is not open
	AckOpen                       // the inode is open
	AckReport                     // with the attributes
)
