package demo

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// treeDir is where in the mount Go's source tree goes.
const treeDir = "src"

// shortTree is what a short demo copies of Go's src: about 1,500 files.
var shortTree = []string{"bufio", "bytes", "encoding", "errors", "fmt", "go", "io", "net", "os", "reflect", "sort", "strings", "sync", "time", "go.mod", "go.sum"}

// The counters of the mount's daemon by which it is known where bytes came from.
const (
	counterShards        = "claudefs_client_shards_fetched_total"
	counterBytes         = "claudefs_client_bytes_fetched_total"
	counterInlineBytes   = "claudefs_client_inline_bytes_fetched_total"
	counterReconstructed = "claudefs_client_shards_reconstructed_total"
	counterBadCRC        = "claudefs_client_crc_failures_total"
)

// fetched is what a verification took from the cluster.
type fetched struct {
	took          time.Duration
	shards        int64
	bytes         int64 // of shards
	inlineBytes   int64
	reconstructed int64
	badCRC        int64
}

// String is the line that people see.
func (f fetched) String() string {
	s := fmt.Sprintf("fetched %s in %s shards and %s inline, reconstructed %s shards", size(f.bytes), count(f.shards), size(f.inlineBytes), count(f.reconstructed))
	if f.badCRC > 0 {
		s += fmt.Sprintf(", %s with a wrong CRC", count(f.badCRC))
	}
	return s
}

// throughNewMount mounts anew, so that no cache has anything, and does a
// verification; it fails if fewer bytes came from the cluster than m's files have.
func (d *demo) throughNewMount(ctx context.Context, m *manifest, verify func() error) (fetched, error) {
	if err := d.remount(ctx); err != nil {
		return fetched{}, err
	}
	return d.counted(ctx, m, verify)
}

// counted is throughNewMount for a mount that has just been made.
func (d *demo) counted(ctx context.Context, m *manifest, verify func() error) (f fetched, err error) {
	before, err := d.mount.Counters(ctx)
	if err != nil {
		return f, err
	}
	for _, name := range []string{counterShards, counterBytes, counterInlineBytes, counterReconstructed, counterBadCRC} {
		if _, ok := before[name]; !ok {
			return f, cfs.Errorf("read the mount's counters", cfs.NotFound, "there is no %s", name)
		}
	}
	begun := time.Now()
	if err := verify(); err != nil {
		return f, err
	}
	f.took = time.Since(begun)
	after, err := d.mount.Counters(ctx)
	if err != nil {
		return f, err
	}
	rise := func(name string) int64 { return int64(after[name] - before[name]) }
	f.shards, f.bytes, f.inlineBytes = rise(counterShards), rise(counterBytes), rise(counterInlineBytes)
	f.reconstructed, f.badCRC = rise(counterReconstructed), rise(counterBadCRC)
	if got := f.bytes + f.inlineBytes; got < m.bytes {
		return f, cfs.Errorf("verify", cfs.Corrupt, "only %s bytes were fetched for files of %s: some came from a cache", count(got), count(m.bytes))
	}
	return f, nil
}

// verifyAll verifies everything through a new mount.
func (d *demo) verifyAll(ctx context.Context) (fetched, error) {
	if err := d.remount(ctx); err != nil {
		return fetched{}, err
	}
	return d.verifyMounted(ctx)
}

// verifyMounted verifies everything through a mount that has just been made.
func (d *demo) verifyMounted(ctx context.Context) (fetched, error) {
	f, err := d.counted(ctx, &d.want, func() error {
		return d.want.verify(ctx, d.point, func(n int64) {
			d.out.progress("verified %s of %s paths", count(n), count(len(d.want.entries)))
		})
	})
	if err != nil {
		return f, err
	}
	d.out.result("all %s files (%s) are right, in %s (%s)", count(d.want.files), size(d.want.bytes), seconds(f.took), megabytes(perSecond(d.want.bytes, f.took)))
	d.out.result("%v", f)
	return f, nil
}

func (d *demo) verify(ctx context.Context) error {
	f, err := d.verifyAll(ctx)
	d.rates.verifyFiles = perSecond(int64(d.want.files), f.took)
	return err
}

// copyTree copies Go's src into the mount.
func (d *demo) copyTree(ctx context.Context) error {
	var only []string
	if d.opt.Short {
		only = shortTree
	}
	list, err := listTree(ctx, d.tools.goSource, treeDir, only, umask())
	if err != nil {
		return err
	}
	begun := time.Now()
	var files []*entry
	for i := range list {
		e := &list[i]
		path := filepath.Join(d.point, e.rel)
		switch {
		case e.mode.IsDir():
			err = os.Mkdir(path, e.mode.Perm())
		case e.mode&fs.ModeSymlink != 0:
			err = os.Symlink(e.target, path)
		default:
			files = append(files, e)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return cfs.E("copy to "+path, cfs.KindOf(err), err)
		}
	}
	progress := countUp(func(n int64) { d.out.progress("copied %s of %s files", count(n), count(len(files))) })
	err = parallel(ctx, len(files), func(i int, bufs *[2][]byte) error {
		defer progress()
		return copyFile(files[i], d.point, bufs[0])
	})
	if err != nil {
		return err
	}
	took := time.Since(begun)
	d.tree = list
	d.want.add(list...)
	d.rates.copyFiles = perSecond(int64(len(files)), took)
	d.out.result("%s files, %s, from %s in %s: %.0f files a second", count(len(files)), size(d.want.bytes), d.tools.goSource, seconds(took), d.rates.copyFiles)
	return nil
}

// copyFile copies one regular file to its place below point.
func copyFile(e *entry, point string, buf []byte) error {
	op := "copy to " + filepath.Join(point, e.rel)
	src, err := os.Open(e.source)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(point, e.rel), os.O_CREATE|os.O_EXCL|os.O_WRONLY, e.mode.Perm())
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	n, err := io.CopyBuffer(onlyWriter{dst}, onlyReader{src}, buf)
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err == nil && n != e.size {
		err = cfs.Errorf("", cfs.Conflict, "the source has changed meanwhile")
	}
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	return nil
}

// onlyWriter hides what else a file can, so that io.CopyBuffer uses the buffer.
type onlyWriter struct{ io.Writer }

// umask is this process's file mode creation mask.
func umask() fs.FileMode {
	mask := syscall.Umask(0)
	syscall.Umask(mask)
	return fs.FileMode(mask)
}
