//go:build planted

package planted

import "os"

// Is reports that a fault is there.
func Is(fault string) bool { return os.Getenv(Env) == fault }
