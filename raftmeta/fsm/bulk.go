package fsm

import "github.com/claudefs/claudefs/cfs"

// BulkTree is a namespace that is made without commands, to be measured: Dirs
// directories of PerDir empty files each and one more, List, of Listed files. The
// names that Dir and File give must ascend, and List comes after all of Dir's.
type BulkTree struct {
	Dirs, PerDir, Listed int
	Dir, File            func(i int) string
	List                 string
}

// bulkIndex is the log index that a state made in bulk stands at.
const bulkIndex = 1

// dirIno is the inode of directory i; List comes after the others.
func (b *BulkTree) dirIno(i int) cfs.Ino {
	return cfs.MakeIno(cfs.RootIno.Site(), cfs.RootIno.Partition(), cfs.RootIno.Counter()+1+uint64(i))
}

// files is how many files directory i has.
func (b *BulkTree) files(i int) int {
	if i == b.Dirs {
		return b.Listed
	}
	return b.PerDir
}

// fileIno is the inode of file i of a directory.
func (b *BulkTree) fileIno(dir, i int) cfs.Ino { return b.dirIno(b.Dirs + 1 + dir*b.PerDir + i) }

// dirName is the name of directory i.
func (b *BulkTree) dirName(i int) string {
	if i == b.Dirs {
		return b.List
	}
	return b.Dir(i)
}

// BulkLoad gives a state that Bootstrap has made, and nothing else, the tree. All
// rows go to set, those of entries and inodes in the order of their keys. The state
// stands at log index 1 then, whose term is whatever the log says.
func BulkLoad(r Reader, b BulkTree, set func(key, val []byte) error) error {
	t := &tx{kv: r, index: bulkIndex}
	root, ok := t.inode(cfs.RootIno)
	if t.err != nil {
		return t.err
	}
	if !ok || t.mark(markApplied) != 0 {
		return cfs.Errorf("load a namespace", cfs.Conflict, "the state is not a new one")
	}
	root.Nlink += uint32(b.Dirs + 1)
	t.putInode(root)
	inodes := uint64(b.Dirs + 1 + b.Dirs*b.PerDir + b.Listed)
	t.addMark(markInodes, inodes)
	t.addMark(markNextIno, inodes)
	t.setMark(markApplied, bulkIndex)
	if t.err != nil {
		return t.err
	}
	if err := t.over.each(set); err != nil {
		return err
	}
	if err := b.entries(set); err != nil {
		return err
	}
	return b.inodes(set)
}

// entries sets the rows of all names.
func (b *BulkTree) entries(set func(key, val []byte) error) error {
	for i := range b.Dirs + 1 {
		if err := set(direntKey(cfs.RootIno, b.dirName(i)), encodeDirent(dirent{b.dirIno(i), cfs.ModeDir})); err != nil {
			return err
		}
	}
	for d := range b.Dirs + 1 {
		for i := range b.files(d) {
			if err := set(direntKey(b.dirIno(d), b.File(i)), encodeDirent(dirent{b.fileIno(d, i), cfs.ModeRegular})); err != nil {
				return err
			}
		}
	}
	return nil
}

// inodes sets the rows of all inodes but the root's.
func (b *BulkTree) inodes(set func(key, val []byte) error) error {
	for i := range b.Dirs + 1 {
		n := &inode{parent: cfs.RootIno}
		n.Attr = cfs.Attr{Ino: b.dirIno(i), Mode: cfs.ModeDir | 0o755, Nlink: 2, Size: cfs.BlockSize, Map: 1, Gen: bulkIndex}
		if err := set(inodeKey(n.Ino), encodeInode(n)); err != nil {
			return err
		}
	}
	for d := range b.Dirs + 1 {
		for i := range b.files(d) {
			n := &inode{}
			n.Attr = cfs.Attr{Ino: b.fileIno(d, i), Mode: cfs.ModeRegular | 0o644, Nlink: 1, Map: 1, Gen: bulkIndex}
			if err := set(inodeKey(n.Ino), encodeInode(n)); err != nil {
				return err
			}
		}
	}
	return nil
}
