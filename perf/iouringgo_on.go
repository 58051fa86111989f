//go:build iouringgo

package perf

import (
	"context"

	"github.com/claudefs/claudefs/iopath"
)

// hasIouringGo says that the engine iouring-go is in this program.
const hasIouringGo = true

func openIouringGo(ctx context.Context, job *Job) (*loaded, error) {
	return openEngine(ctx, job, 1, func(arena *iopath.Arena) (iopath.Engine, error) {
		return iopath.NewIouringGo(ringConfig(job.Depth, arena))
	})
}
