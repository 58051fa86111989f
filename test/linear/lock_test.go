package linear

import (
	"context"

	"github.com/claudefs/claudefs/client"
)

// doLock does nothing yet.
func (w *work) doLock(context.Context, *client.Client, *world, input) (output, error) {
	return output{Outcome: unknown}, nil
}
