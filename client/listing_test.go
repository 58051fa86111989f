package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

func TestListingFollowsAChainWithoutGaps(t *testing.T) {
	c := newCache(time.Hour)
	const dir = 7
	if c.absent(dir, "a") {
		t.Error("a directory that nobody listed has no known names")
	}
	c.made(dir, 10, time.Now())
	if !c.absent(dir, "a") {
		t.Error("a new directory is empty")
	}
	c.changed(dir, 12, 15, "b", true, time.Now()) // overtook the change from 10 to 12
	if c.absent(dir, "b") || !c.absent(dir, "a") {
		t.Error("a change that came early counts for its own name")
	}
	c.changed(dir, 10, 12, "a", true, time.Now())
	if c.absent(dir, "a") || c.absent(dir, "b") || !c.absent(dir, "c") {
		t.Error("both changes are known")
	}
	c.changed(dir, 15, 16, "a", false, time.Now())
	if !c.absent(dir, "a") {
		t.Error("a was removed")
	}
	c.changed(dir, 12, 20, "d", true, time.Now())
	if c.absent(dir, "x") {
		t.Error("a change from a generation that has passed shows that somebody else's lies between")
	}
}

func TestListingEndsWithItsTime(t *testing.T) {
	c := newCache(0)
	c.made(7, 10, time.Now())
	if c.absent(7, "a") {
		t.Error("an expired listing answers")
	}
}

func TestListingCountsFromTheQuestion(t *testing.T) {
	c := newCache(time.Hour)
	c.made(7, 10, time.Now().Add(-2*time.Hour)) // the reply to a retry, long after
	if c.absent(7, "a") {
		t.Error("an answer that was old when it came counts as new")
	}
	c.putAttr(cfs.Attr{Ino: 8, Gen: 12})
	c.made(8, 10, time.Now())
	if c.absent(8, "a") {
		t.Error("a directory that has changed since it was made counts as empty")
	}
}

func TestListingsAreBounded(t *testing.T) {
	c := newCache(time.Hour)
	for i := range 3 * maxListings {
		c.made(1000+cfs.Ino(i), 1, time.Now())
	}
	if n := len(c.listings); n > maxListings {
		t.Errorf("%d listings, at most %d", n, maxListings)
	}
	c.made(7, 1, time.Now())
	for i := range uint64(maxListed + 10) {
		c.changed(7, i+1, i+2, fmt.Sprint(i), true, time.Now())
	}
	if c.absent(7, "x") || c.listings[7] != nil {
		t.Error("a directory with too many names is still listed")
	}
	c.made(7, 1, time.Now())
	for i := range uint64(maxEarly + 10) {
		c.changed(7, 10+2*i, 11+2*i, fmt.Sprint(i), true, time.Now())
	}
	if c.listings[7] != nil {
		t.Error("a listing waits for a gap that will not close")
	}
}
