package lease

import (
	"strconv"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

func benchTable() *Table {
	t := NewTable(Config{Term: 1, LeaseTime: time.Hour, MaxKeys: 1 << 16, MaxAll: 1 << 20, MaxOpens: 1 << 16})
	for id := range cfs.SessionID(2) {
		t.AddSession(id+1, true)
		epoch, _ := t.Beat(id+1, 0, nil, 0, 0)
		t.Beat(id+1, epoch, nil, 0, 0)
	}
	return t
}

// BenchmarkChange is a create for which nobody has to be asked.
func BenchmarkChange(b *testing.B) {
	t := benchTable()
	names := make([]string, 1024)
	for i := range names {
		names[i] = "file" + strconv.Itoa(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := &Change{}
		keys := [3]Key{{Kind: Name, Ino: 1, Name: names[i%1024]}, {Kind: List, Ino: 1}, {Kind: Attr, Ino: 1}}
		t.Begin(c, 1, false, keys[:], time.Second)
		if !c.Leave() {
			b.Fatal("no leave")
		}
		t.End(c)
	}
}

// BenchmarkRegister is a query's registration of what its session has, and of what it has not.
func BenchmarkRegister(b *testing.B) {
	for _, fresh := range []bool{false, true} {
		b.Run(map[bool]string{false: "again", true: "fresh"}[fresh], func(b *testing.B) {
			t := benchTable()
			epoch, _ := t.Beat(1, 0, nil, 0, 0)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var g Grant
				if !t.Register(&g, 1, epoch, time.Second, Key{Kind: Attr, Ino: 7}) || !t.Standing(&g) {
					b.Fatal("not leased")
				}
				if fresh {
					t.Withdraw(&g)
				}
			}
		})
	}
}

// TestAllocations holds the price of the paths on which nobody waits.
func TestAllocations(t *testing.T) {
	tab := benchTable()
	keys := [3]Key{{Kind: Name, Ino: 1, Name: "a"}, {Kind: List, Ino: 1}, {Kind: Attr, Ino: 1}}
	if n := testing.AllocsPerRun(100, func() {
		c := &Change{}
		tab.Begin(c, 1, false, keys[:], time.Second)
		tab.End(c)
	}); n > 2 {
		t.Errorf("a change allocates %v times", n)
	}
}
