package kv

import (
	"hash/maphash"

	"github.com/cockroachdb/pebble/v2"

	"github.com/claudefs/claudefs/raftmeta/fsm"
)

// Bounds of names.
const (
	// maxNames bounds the names that are known, of some 16 bytes each.
	maxNames = 512 << 10
	// maxFolders bounds the directories that are counted or known, of some 60 bytes each.
	maxFolders = 64 << 10
	// maxReadRows bounds the rows that are read at once, while a commit waits: some 20 ms.
	maxReadRows = 64 << 10
	// readAfter is the number of looks in vain after which a directory is read first.
	readAfter = 8
	// rowsPerLook is how many rows are read at the cost of less than a look in vain.
	rowsPerLook = 8
	// folderKnown instead of a number of looks says that all names are known.
	folderKnown = -1
)

// names knows of some directories which names they may have. Each file that is made is
// looked for first, and the store looks long for what it does not have. A directory is
// known once all of its rows have been read, and that is tried when it has been looked into
// in vain so often that reading has its price: at 8 looks up to 64 rows, then at 16, and so
// on. From then on what batches write to it is noted. A name that was deleted, or was
// written by a batch that came to nothing, stays noted: it costs a look.
//
// Like recent, it is touched by the open batch only.
type names struct {
	seed    maphash.Seed
	folders map[string]int // by the prefix of their rows' keys: looks in vain, or folderKnown
	noted   map[uint64]struct{}
}

func newNames() names {
	return names{seed: maphash.MakeSeed(), folders: map[string]int{}, noted: map[uint64]struct{}{}}
}

// lacks reports that the store surely has no such key.
func (n *names) lacks(key []byte) bool {
	if f, ok := fsm.Folder(key); !ok || n.folders[string(f)] != folderKnown {
		return false
	}
	_, there := n.noted[maphash.Bytes(n.seed, key)]
	return !there
}

// wrote notes a key that is written, if its directory is known.
func (n *names) wrote(key []byte) {
	if f, ok := fsm.Folder(key); ok && n.folders[string(f)] == folderKnown {
		n.note(key)
	}
}

func (n *names) note(key []byte) {
	if len(n.noted) >= maxNames {
		n.forget()
		return
	}
	n.noted[maphash.Bytes(n.seed, key)] = struct{}{}
}

// forget makes room: what is small is soon known again.
func (n *names) forget() {
	clear(n.folders)
	clear(n.noted)
}

// missed counts a look in vain. It returns the key's directory and how many rows of it
// should be read now, mostly none.
func (n *names) missed(key []byte) (folder []byte, rows int) {
	f, ok := fsm.Folder(key)
	if !ok || n.folders[string(f)] == folderKnown {
		return nil, 0
	}
	if len(n.folders) >= maxFolders && n.folders[string(f)] == 0 {
		n.forget()
	}
	looks := n.folders[string(f)] + 1
	n.folders[string(f)] = looks
	if looks < readAfter || looks&(looks-1) != 0 {
		return nil, 0
	}
	return f, min(looks*rowsPerLook, maxReadRows)
}

// read gets to know a directory, if it has no more rows than that.
func (b *pebbleBatch) read(folder []byte, rows int) error {
	if err := b.s.current(); err != nil {
		return err
	}
	it, err := b.s.db.NewIter(&pebble.IterOptions{LowerBound: folder, UpperBound: fsm.After(folder)})
	if err != nil {
		return wrap("read state", b.dir, err)
	}
	n := &b.s.names
	ok := it.First()
	for ; ok && rows > 0; ok = it.Next() {
		n.note(it.Key())
		rows--
	}
	if err := it.Close(); err != nil {
		return wrap("read state", b.dir, err)
	}
	if ok || n.folders[string(folder)] == 0 { // it has more, or there was no room
		return nil
	}
	n.folders[string(folder)] = folderKnown
	for _, c := range b.own {
		n.wrote([]byte(c.key))
	}
	return nil
}
