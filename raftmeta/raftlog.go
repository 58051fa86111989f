package raftmeta

import (
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// raftPanic is what Raft says when its state contradicts itself, a lost log for
// one. The loop turns it into the Node's error.
type raftPanic string

// raftLogger passes Raft's messages on.
type raftLogger struct{ log *slog.Logger }

var _ raft.Logger = raftLogger{}

func (l raftLogger) Debug(v ...any)            {}
func (l raftLogger) Debugf(f string, v ...any) {}
func (l raftLogger) Info(v ...any)             { l.log.Debug("raft", "event", fmt.Sprint(v...)) }
func (l raftLogger) Infof(f string, v ...any)  { l.log.Debug("raft", "event", fmt.Sprintf(f, v...)) }
func (l raftLogger) Warning(v ...any)          { l.log.Warn("raft", "event", fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any) {
	l.log.Warn("raft", "event", fmt.Sprintf(f, v...))
}
func (l raftLogger) Error(v ...any)            { l.log.Error("raft", "event", fmt.Sprint(v...)) }
func (l raftLogger) Errorf(f string, v ...any) { l.log.Error("raft", "event", fmt.Sprintf(f, v...)) }
func (l raftLogger) Fatal(v ...any)            { panic(raftPanic(fmt.Sprint(v...))) }
func (l raftLogger) Fatalf(f string, v ...any) { panic(raftPanic(fmt.Sprintf(f, v...))) }
func (l raftLogger) Panic(v ...any)            { panic(raftPanic(fmt.Sprint(v...))) }
func (l raftLogger) Panicf(f string, v ...any) { panic(raftPanic(fmt.Sprintf(f, v...))) }

// storage is Raft's view of the log: in memory, since the log on disk is only
// read at start. Its snapshot is always the present state, which is streamed
// when Raft sends it.
type storage struct {
	*raft.MemoryStorage
	present func() *pb.Snapshot
}

// Snapshot describes the present state.
func (s *storage) Snapshot() (*pb.Snapshot, error) { return s.present(), nil }
