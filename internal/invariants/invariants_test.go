package invariants

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	Check(true, "holds")

	defer func() {
		got := recover()
		if !Enabled {
			if got != nil {
				t.Fatalf("Check panicked in a build without invariants: %v", got)
			}
			return
		}
		text, ok := got.(string)
		if !ok || !strings.Contains(text, "durable 9 past written 7") {
			t.Fatalf("Check(false) gave %v, want a panic with the formatted text", got)
		}
	}()
	Check(false, "durable %d past written %d", 9, 7)
}

func TestCheckDoesNotAllocate(t *testing.T) {
	if Race {
		t.Skip("the race detector allocates on its own")
	}
	n, big := 0, uint64(1<<40)
	got := testing.AllocsPerRun(100, func() {
		n++
		big++
		Check(n > 0, "n is %d, big is %d", n, big)
	})
	if !Enabled && got != 0 {
		t.Fatalf("an empty Check allocated %v times", got)
	}
}
