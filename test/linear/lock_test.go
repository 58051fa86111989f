package linear

import (
	"context"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

// doLock tries the lock of a world, or gives it back.
func (w *work) doLock(ctx context.Context, c *client.Client, wd *world, in input) (output, error) {
	l := cfs.Lock{Kind: cfs.LockPosix, Type: cfs.LockWrite, Owner: in.Value, End: ^uint64(0)}
	if in.Act == actUnlock {
		l.Type = cfs.LockNone
	}
	return judge(output{}, c.SetLock(ctx, wd.lock, l, false))
}
