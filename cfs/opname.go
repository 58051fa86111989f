package cfs

// opNames are the operations as people and metrics see them.
var opNames = [opKindEnd]string{
	OpCreate: "create", OpLink: "link", OpUnlink: "unlink", OpRmdir: "rmdir", OpRename: "rename", OpSetAttr: "setattr",
	OpSetXattr: "setxattr", OpRemoveXattr: "removexattr", OpWrite: "write", OpSwap: "swap", OpRelease: "release", OpReap: "reap",
	OpOpenSession: "open_session", OpExpireSession: "expire_session", OpSetNode: "set_node", OpSetDevice: "set_device",
	OpSetGroups: "set_groups", OpFeedDone: "feed_done", OpFillDone: "fill_done", OpDropGroups: "drop_groups", OpSetJob: "set_job",
	OpSurrender: "surrender", OpLock: "lock", OpSetConsumer: "set_consumer", OpDropConsumer: "drop_consumer", OpRemoveNode: "remove_node",
	OpSetCA: "set_ca", OpAddToken: "add_token", OpUseToken: "use_token", OpRevoke: "revoke", OpSetReplica: "set_replica",
	OpGrantInos: "grant_inos",
}

// String is the operation's name, "unknown" for none of this version.
func (k OpKind) String() string {
	if !k.Valid() {
		return "unknown"
	}
	return opNames[k]
}

// queryNames are the queries as people and metrics see them.
var queryNames = [queryKindEnd]string{
	QueryLookup: "lookup", QueryGetAttr: "getattr", QueryReadDir: "readdir", QueryReadlink: "readlink", QueryGetXattr: "getxattr",
	QueryListXattr: "listxattr", QueryExtents: "extents", QueryStatfs: "statfs", QueryMap: "map", QueryFeed: "feed", QueryStripes: "stripes",
	QueryFates: "fates", QueryWindows: "windows", QueryUsage: "usage", QueryLock: "getlock", QueryJournal: "journal",
	QueryConsumers: "consumers", QuerySessions: "sessions", QueryTokens: "tokens", QueryEnrolled: "enrolled",
}

// String is the query's name, "unknown" for none of this version.
func (k QueryKind) String() string {
	if !k.Valid() {
		return "unknown"
	}
	return queryNames[k]
}
