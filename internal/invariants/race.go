//go:build race

package invariants

// Race reports that the race detector is on. Tests that count allocations skip
// under it: it allocates on its own, and sync.Pool drops items at random.
const Race = true
