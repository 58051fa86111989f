//go:build !planted

package planted

// Is reports that a fault is there: never, in this build.
func Is(string) bool { return false }
