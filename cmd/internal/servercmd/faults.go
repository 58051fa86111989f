package servercmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// faultDirEnv names a directory, for tests and benchmarks. While the file node-N-KIND in it
	// holds a duration, node N suffers from it; KIND is one of the fault kinds.
	faultDirEnv = "CLAUDEFS_FAULT_DIR"
	// faultPoll is how often a file is looked at.
	faultPoll = 20 * time.Millisecond
)

// The kinds of faults.
const (
	faultRead  = "read"  // answers to reads of shards are so much later
	faultSync  = "sync"  // each sync of the Raft log takes so much longer
	faultClock = "clock" // the wall clock is so far ahead, or behind
)

// fault is the duration that a node's file of a kind in dir asks for at each moment, until
// ctx ends; nil where dir is empty.
func fault(ctx context.Context, dir, kind string, nodeID uint16) func() time.Duration {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, fmt.Sprintf("node-%d-%s", nodeID, kind))
	var now atomic.Int64
	go func() {
		tick := time.NewTicker(faultPoll)
		defer tick.Stop()
		for {
			// No file, or one that is just being written, asks for nothing.
			text, _ := os.ReadFile(path)
			d, _ := time.ParseDuration(strings.TrimSpace(string(text)))
			now.Store(int64(d))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return func() time.Duration { return time.Duration(now.Load()) }
}
