package top

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// The size of a Dirs. It counts dirSets*dirWays directories at most.
const (
	dirSets = 64
	dirWays = 8
	// fadeEvery is how often counts are halved: what a steady rate leaves is, at the mean, what
	// comes in a minute.
	fadeEvery = 40 * time.Second
)

// Dirs finds the busiest directories of about the last minute among any number of them
// (space-saving counters, by sets): one that is not counted yet takes the place, and the
// count, of the least busy one of its set, so no busy one is missed for long. Its zero value
// is ready for any number of goroutines.
type Dirs struct {
	sets [dirSets]dirSet
}

type dirSet struct {
	mu    sync.Mutex
	fades int64 // how often the counts have been halved
	ino   [dirWays]uint64
	count [dirWays]uint32
	taken [dirWays]uint32 // of the count, from the one whose place it took
}

// Dir is a directory and how many operations were surely in it, in about the last minute.
type Dir struct {
	Ino uint64
	Ops uint64
}

// Touch counts an operation in a directory, at a time after some beginning.
func (d *Dirs) Touch(ino uint64, now time.Duration) {
	const mix = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio: neighbours go to different sets
	s := &d.sets[ino*mix>>(64-6)]
	s.mu.Lock()
	s.fadeLocked(now)
	s.touchLocked(ino)
	s.mu.Unlock()
}

func (s *dirSet) touchLocked(ino uint64) {
	for i, known := range s.ino {
		if known == ino {
			s.count[i]++
			return
		}
	}
	least, count := 0, s.count[0]
	for i, c := range s.count {
		if c < count {
			least, count = i, c
		}
	}
	s.ino[least], s.count[least], s.taken[least] = ino, count+1, count
}

// fadeLocked halves the counts for the time that has passed.
func (s *dirSet) fadeLocked(now time.Duration) {
	due := int64(now / fadeEvery)
	if due <= s.fades {
		return
	}
	by := due - s.fades
	s.fades = due
	for i := range s.ino {
		s.count[i] >>= by
		s.taken[i] >>= by
	}
}

// Hottest are the busiest directories, at most n, the busiest first.
func (d *Dirs) Hottest(n int, now time.Duration) []Dir {
	var all []Dir
	for i := range d.sets {
		s := &d.sets[i]
		s.mu.Lock()
		s.fadeLocked(now)
		for i, ino := range s.ino {
			if ops := s.count[i] - s.taken[i]; ino != 0 && ops > 0 {
				all = append(all, Dir{ino, uint64(ops)})
			}
		}
		s.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Dir) int { return cmp.Or(cmp.Compare(b.Ops, a.Ops), cmp.Compare(a.Ino, b.Ino)) })
	return all[:min(n, len(all))]
}
