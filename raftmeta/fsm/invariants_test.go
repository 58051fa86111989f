package fsm

import (
	"fmt"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// checkState is what Check finds in a state, "" for nothing. The slice is small, so
// that a state of a few rows may take several.
func checkState(kv *memKV) string {
	r, err := check(kv, 50)
	if err != nil {
		return err.Error()
	}
	if r.Faults == 0 {
		return ""
	}
	return fmt.Sprintf("%d faults:\n%s", r.Faults, strings.Join(r.Examples, "\n"))
}

type stripeAt struct {
	pg cfs.PGID
	id cfs.StripeID
}
