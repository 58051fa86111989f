package servercmd

import (
	"os"
	"runtime/debug"
)

// gcPercent is how much garbage a server gathers for each byte in use before it
// collects. What it has in use is little, and its buffers and block cache are not on
// Go's heap: with the default of 100 a busy voter spent a fifth of its time collecting.
const gcPercent = 400

// tuneCollector sets it, unless the environment says otherwise.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
