//go:build invariants || race

package invariants

import "fmt"

// Enabled reports that Check checks.
const Enabled = true

// Check panics with the formatted text unless cond holds.
func Check(cond bool, format string, args ...any) {
	if !cond {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}
