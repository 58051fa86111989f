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
	// readDelayEnv names a directory, for tests and benchmarks: while the file node-N in it
	// holds a duration, node N answers every read of a shard so much later.
	readDelayEnv = "CLAUDEFS_READ_DELAY_DIR"
	// readDelayPoll is how often the file is looked at.
	readDelayPoll = 20 * time.Millisecond
)

// readDelay is the delay that the node's file in dir asks for at each moment, until ctx
// ends; nil where dir is empty.
func readDelay(ctx context.Context, dir string, nodeID uint16) func() time.Duration {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, fmt.Sprintf("node-%d", nodeID))
	var delay atomic.Int64
	go func() {
		tick := time.NewTicker(readDelayPoll)
		defer tick.Stop()
		for {
			// No file, or one that is just being written, asks for nothing.
			text, _ := os.ReadFile(path)
			d, _ := time.ParseDuration(strings.TrimSpace(string(text)))
			delay.Store(int64(d))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return func() time.Duration { return time.Duration(delay.Load()) }
}
