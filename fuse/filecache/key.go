package filecache

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// Key names the content of a file. The generation alone tells the versions of an inode apart; the times of birth and of the last write
// tell a cluster that was made anew, or restored, under an old name from the one before.
type Key struct {
	Ino       cfs.Ino
	Gen       uint64
	BornNS    int64
	WrittenNS int64
	SizeBytes uint64
}

// KeyOf is the key of an inode's content, if nothing that was written to it is uncommitted.
func KeyOf(a *cfs.Attr) Key {
	return Key{Ino: a.Ino, Gen: a.Gen, BornNS: a.BtimeNS, WrittenNS: a.MtimeNS, SizeBytes: a.Size}
}

// keyFields is how many numbers a name has.
const keyFields = 5

// name is the key as a file's name: its numbers in hexadecimal.
func (k Key) name() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", uint64(k.Ino), k.Gen, uint64(k.BornNS), uint64(k.WrittenNS), k.SizeBytes)
}

// parseName is the inverse of name; false for what name does not make.
func parseName(name string) (Key, bool) {
	parts := strings.Split(name, "-")
	if len(parts) != keyFields {
		return Key{}, false
	}
	var n [keyFields]uint64
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 64)
		if err != nil {
			return Key{}, false
		}
		n[i] = v
	}
	k := Key{Ino: cfs.Ino(n[0]), Gen: n[1], BornNS: int64(n[2]), WrittenNS: int64(n[3]), SizeBytes: n[4]}
	return k, k.name() == name && k.SizeBytes <= cfs.MaxFileSize
}
