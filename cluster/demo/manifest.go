package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/claudefs/claudefs/cfs"
)

// workers is how many files are worked on at once.
const workers = 8

// entry is what one path of the mount must be.
type entry struct {
	rel    string // below the mount point
	mode   fs.FileMode
	size   int64
	source string            // a file outside with the same bytes, or
	sum    [sha256.Size]byte // their SHA-256
	target string            // of a symbolic link
}

// manifest is what the mount must hold.
type manifest struct {
	entries []entry
	bytes   int64 // of all regular files
	files   int   // the regular ones
}

func (m *manifest) add(entries ...entry) {
	for _, e := range entries {
		if e.mode.IsRegular() {
			m.bytes += e.size
			m.files++
		}
	}
	m.entries = append(m.entries, entries...)
}

// countUp is a function that counts its calls, from any goroutine, and tells fn of each.
func countUp(fn func(n int64)) func() {
	var n atomic.Int64
	return func() { fn(n.Add(1)) }
}

// parallel calls fn for 0..n-1 from several goroutines, each with buffers of its
// own, until one fails or ctx ends.
func parallel(ctx context.Context, n int, fn func(i int, bufs *[2][]byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(workers, n) {
		g.Go(func() error {
			bufs := [2][]byte{make([]byte, ioBytes), make([]byte, ioBytes)}
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if ctx.Err() != nil {
					return cfs.E("", cfs.Canceled, ctx.Err())
				}
				if err := fn(i, &bufs); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// listTree lists a directory outside as it shall be below rel in the mount, in
// the order of filepath.WalkDir. Only names in only, where given, are taken from the top.
func listTree(ctx context.Context, root, rel string, only []string, umask fs.FileMode) ([]entry, error) {
	var list []entry
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		below, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if top, _, _ := strings.Cut(below, "/"); only != nil && below != "." && !slices.Contains(only, top) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{rel: filepath.Join(rel, below), mode: info.Mode() &^ umask}
		switch {
		case info.IsDir():
		case info.Mode().IsRegular():
			e.size, e.source = info.Size(), path
		case info.Mode()&fs.ModeSymlink != 0:
			e.mode = info.Mode()
			if e.target, err = os.Readlink(path); err != nil {
				return err
			}
		default:
			return nil // a socket or the like: nothing to copy
		}
		list = append(list, e)
		return nil
	})
	if err != nil {
		return nil, cfs.E("list "+root, cfs.KindOf(err), err)
	}
	return list, nil
}

// scan records what is below rel in the mount as it is now: for what other
// programs have written there.
func scan(ctx context.Context, point, rel string) ([]entry, error) {
	list, err := listTree(ctx, filepath.Join(point, rel), rel, nil, 0)
	if err != nil {
		return nil, err
	}
	err = parallel(ctx, len(list), func(i int, bufs *[2][]byte) error {
		e := &list[i]
		if !e.mode.IsRegular() {
			return nil
		}
		var err error
		e.sum, err = sumFile(e.source, bufs[0])
		e.source = ""
		return err
	})
	return list, err
}

// sumFile is the SHA-256 of a file.
func sumFile(path string, buf []byte) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, cfs.E("read "+path, cfs.KindOf(err), err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, onlyReader{f}, buf); err != nil {
		return sum, cfs.E("read "+path, cfs.KindOf(err), err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// onlyReader hides what else a file can, so that io.CopyBuffer uses the buffer.
type onlyReader struct{ io.Reader }

// verify compares everything below point with the manifest: the names of every
// directory, types, modes, sizes, targets and all bytes.
func (m *manifest) verify(ctx context.Context, point string, done func(files int64)) error {
	children := map[string][]string{".": nil}
	for _, e := range m.entries {
		parent := filepath.Dir(e.rel)
		children[parent] = append(children[parent], filepath.Base(e.rel))
	}
	progress := countUp(done)
	return parallel(ctx, len(m.entries)+1, func(i int, bufs *[2][]byte) error {
		root := entry{rel: ".", mode: fs.ModeDir}
		e := &root
		if i > 0 {
			e = &m.entries[i-1]
		}
		if e.mode.IsDir() {
			if err := sameNames(filepath.Join(point, e.rel), children[e.rel]); err != nil {
				return err
			}
		}
		if i == 0 {
			return nil
		}
		if err := e.verify(filepath.Join(point, e.rel), bufs); err != nil {
			return err
		}
		progress()
		return nil
	})
}

// sameNames compares a directory's names with those that it must have.
func sameNames(dir string, want []string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return cfs.E("list "+dir, cfs.KindOf(err), err)
	}
	got := make([]string, 0, len(list))
	for _, d := range list {
		got = append(got, d.Name())
	}
	slices.Sort(got)
	slices.Sort(want)
	if slices.Equal(got, want) {
		return nil
	}
	for _, name := range want {
		if _, found := slices.BinarySearch(got, name); !found {
			return cfs.Errorf("verify "+dir, cfs.Corrupt, "%s is missing", name)
		}
	}
	return cfs.Errorf("verify "+dir, cfs.Corrupt, "%d names, of which %d should be there", len(got), len(want))
}

// verify compares one path with its entry.
func (e *entry) verify(path string, bufs *[2][]byte) error {
	op := "verify " + path
	info, err := os.Lstat(path)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if info.Mode() != e.mode {
		return cfs.Errorf(op, cfs.Corrupt, "its mode is %v, should be %v", info.Mode(), e.mode)
	}
	switch {
	case e.mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		if target != e.target {
			return cfs.Errorf(op, cfs.Corrupt, "it points to %q, should to %q", target, e.target)
		}
	case e.mode.IsRegular():
		if info.Size() != e.size {
			return cfs.Errorf(op, cfs.Corrupt, "it has %d bytes, should have %d", info.Size(), e.size)
		}
		if e.source != "" {
			return sameBytes(path, e.source, bufs)
		}
		sum, err := sumFile(path, bufs[0])
		if err != nil {
			return err
		}
		if sum != e.sum {
			return cfs.Errorf(op, cfs.Corrupt, "its SHA-256 is %x, should be %x", sum, e.sum)
		}
	}
	return nil
}

// sameBytes compares two files.
func sameBytes(path, source string, bufs *[2][]byte) error {
	op := "verify " + path
	a, err := os.Open(path)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer a.Close()
	b, err := os.Open(source)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer b.Close()
	for off := int64(0); ; {
		n, aerr := io.ReadFull(a, bufs[0])
		want, berr := io.ReadFull(b, bufs[1])
		if err := notEOF(aerr); err != nil {
			return cfs.E(op, cfs.KindOf(err), err)
		}
		if err := notEOF(berr); err != nil {
			return cfs.E("read "+source, cfs.KindOf(err), err)
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:want]) {
			return cfs.Errorf(op, cfs.Corrupt, "it differs from %s within the %d bytes from %d", source, max(n, want), off)
		}
		if aerr != nil || berr != nil {
			return nil
		}
		off += int64(n)
	}
}

// notEOF is nil for what io.ReadFull says at the end of a file.
func notEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}

// syncAll fsyncs every file and directory of the manifest.
func (m *manifest) syncAll(ctx context.Context, point string) error {
	if err := syncPath(point); err != nil {
		return err
	}
	return parallel(ctx, len(m.entries), func(i int, _ *[2][]byte) error {
		e := &m.entries[i]
		if e.mode&fs.ModeSymlink != 0 {
			return nil // it is durable with its directory
		}
		return syncPath(filepath.Join(point, e.rel))
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return cfs.E("fsync "+path, cfs.KindOf(err), err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return cfs.E("fsync "+path, cfs.KindOf(err), err)
	}
	return nil
}
