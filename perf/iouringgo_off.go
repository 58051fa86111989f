//go:build !iouringgo

package perf

import (
	"context"

	"github.com/claudefs/claudefs/cfs"
)

// hasIouringGo says that the engine iouring-go is in this program.
const hasIouringGo = false

func openIouringGo(context.Context, *Job) (*loaded, error) {
	return nil, cfs.Errorf("--engine iouring-go", cfs.Unsupported,
		"it is not in this program: build with CGO_ENABLED=0 go build -tags iouringgo -ldflags=-checklinkname=0 -o bin/ ./cmd/cfs-perf")
}
