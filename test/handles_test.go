package test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// handleOf is the file handle of a path, as an NFS server gives it to its clients.
func handleOf(t *testing.T, path string) unix.FileHandle {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	must(t, err)
	return h
}

// openHandle opens what a handle stands for, on the mount that dir is of.
func openHandle(t *testing.T, dir string, h unix.FileHandle, flags int) (*os.File, error) {
	t.Helper()
	fd, err := unix.OpenByHandleAt(dirFD(t, dir), h, flags|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "handle")
	t.Cleanup(func() { f.Close() })
	return f, nil
}

// fileHandles are good on every mount: one gives them out, the other, which has never
// seen these inodes, opens them.
func fileHandles(t *testing.T, a, b string) {
	must(t, os.MkdirAll(a+"/d/sub", 0o755))
	must(t, writeFile(a+"/d/sub/f", []byte("by handle")))
	file, sub := handleOf(t, a+"/d/sub/f"), handleOf(t, a+"/d/sub")
	f, err := openHandle(t, b, file, unix.O_RDONLY)
	must(t, err)
	if got, err := io.ReadAll(f); err != nil || string(got) != "by handle" {
		t.Errorf("%q, %v", got, err)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if want := stat(t, a+"/d/sub/f"); st.Ino != want.Ino {
		t.Errorf("inode %d, want %d", st.Ino, want.Ino)
	}
	// A directory is connected to the root by its parents: it has a path again.
	d, err := openHandle(t, b, sub, unix.O_RDONLY|unix.O_DIRECTORY)
	must(t, err)
	if names, err := d.Readdirnames(-1); err != nil || len(names) != 1 || names[0] != "f" {
		t.Errorf("names %q, %v", names, err)
	}
	must(t, unix.Fstatat(int(d.Fd()), "../../d/sub", &st, 0))
	if want := stat(t, a+"/d/sub"); st.Ino != want.Ino {
		t.Errorf("up and down again: inode %d, want %d", st.Ino, want.Ino)
	}
	must(t, f.Close())
	must(t, os.Remove(a+"/d/sub/f"))
	eventually(t, "a handle of a removed file is stale", func() bool {
		_, err := openHandle(t, a, file, unix.O_RDONLY)
		return errors.Is(err, unix.ESTALE)
	})
}

// handlesOutliveMounts: what an NFS client holds is good after the server's daemon was restarted.
func handlesOutliveMounts(t *testing.T, m *cluster.Mount) {
	path := filepath.Join(m.Point, "kept")
	must(t, writeFile(path, []byte("kept")))
	h := handleOf(t, path)
	remount(t, m)
	f, err := openHandle(t, m.Point, h, unix.O_RDWR)
	must(t, err)
	if got, err := io.ReadAll(f); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	_, err = f.WriteString(" on")
	must(t, err)
	must(t, f.Close())
	sameBytes(t, "written by handle", path, []byte("kept on"))
}
