package iopath

import "fmt"

// describe says what an operation attempted, for errors.
func describe(code uint8, f File, off int64) string {
	switch code {
	case opRead:
		return fmt.Sprintf("read %s at %d", f.name, off)
	case opWrite:
		return fmt.Sprintf("write %s at %d", f.name, off)
	default:
		return "flush " + f.name
	}
}
