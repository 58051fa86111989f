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
)
