package fuse

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// aclOf is the form of an ACL of entries {tag, perm, id}; id 0 is none but for tags 2 and 8.
func aclOf(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		id := e[2]
		if e[0] != 2 && e[0] != 8 {
			id = 0xffffffff
		}
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return b
}

// inUser runs fn as another user, on a thread of its own.
func inUser(t *testing.T, uid int, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- asUser(uid, fn) }()
	check(t, <-done)
}

func TestKernelEnforcesACLs(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.Chmod(dir, 0o755))
	f := dir + "/f"
	check(t, os.WriteFile(f, []byte("x"), 0o600))
	opens := func(want error) func() error {
		return func() error {
			g, err := os.OpenFile(f, os.O_RDWR, 0)
			if err == nil {
				g.Close()
			}
			if !errors.Is(err, want) {
				return fmt.Errorf("open: %v, want %v", err, want)
			}
			return nil
		}
	}
	inUser(t, 1234, opens(unix.EACCES))
	check(t, unix.Setxattr(f, cfs.XattrACLAccess, aclOf([3]uint32{1, 6}, [3]uint32{2, 6, 1234}, [3]uint32{4, 0}, [3]uint32{16, 6}, [3]uint32{32, 0}), 0))
	if st := lstat(t, f); st.Mode&0o777 != 0o660 {
		t.Errorf("mode %o under the ACL", st.Mode)
	}
	inUser(t, 1234, opens(nil))
	inUser(t, 4321, opens(unix.EACCES))
	inUser(t, 4321, func() error {
		if err := unix.Setxattr(f, cfs.XattrACLAccess, aclOf([3]uint32{1, 7}, [3]uint32{4, 7}, [3]uint32{32, 7}), 0); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("another user sets an ACL: %v", err)
		}
		return nil
	})
	check(t, unix.Removexattr(f, cfs.XattrACLAccess))
	check(t, os.Chmod(f, 0o600))
	inUser(t, 1234, opens(unix.EACCES))
}

// The umask counts where there is no default ACL, for all that can be made.
func TestUmaskAndDefaultACL(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	check(t, os.Mkdir(dir+"/plain", 0o755))
	check(t, os.Mkdir(dir+"/acl", 0o755))
	check(t, unix.Setxattr(dir+"/acl", cfs.XattrACLDefault, aclOf([3]uint32{1, 7}, [3]uint32{4, 7}, [3]uint32{32, 7}), 0))
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for name, want := range map[string]uint32{"plain": 0o600, "acl": 0o666} {
		at := dir + "/" + name
		check(t, os.WriteFile(at+"/file", nil, 0o666))
		check(t, unix.Mkdir(at+"/dir", 0o666))
		check(t, unix.Mknod(at+"/node", unix.S_IFIFO|0o666, 0))
		for what, mode := range map[string]uint32{"file": lstat(t, at+"/file").Mode, "dir": lstat(t, at+"/dir").Mode, "node": lstat(t, at+"/node").Mode} {
			if mode&0o777 != want {
				t.Errorf("%s in %s has mode %o, want %o", what, name, mode&0o777, want)
			}
		}
	}
}

// An ACL set by an owner who is not in the file's group takes set-group-ID away: the kernel tells us.
func TestACLKillsSetGID(t *testing.T) {
	dir, s := mounted(t, newMemFS())
	if !s.fs.setxattrExt {
		t.Skip("needs Linux 5.14")
	}
	f := dir + "/f"
	check(t, os.WriteFile(f, nil, 0o644))
	check(t, unix.Lchown(f, 1234, 77))
	check(t, unix.Chmod(f, 0o2755))
	inUser(t, 1234, func() error {
		return unix.Setxattr(f, cfs.XattrACLAccess, aclOf([3]uint32{1, 7}, [3]uint32{4, 5}, [3]uint32{32, 5}), 0)
	})
	if st := lstat(t, f); st.Mode&0o7777 != 0o755 {
		t.Errorf("mode %o", st.Mode&0o7777)
	}
}

func TestTmpfile(t *testing.T) {
	dir, _ := mounted(t, newMemFS())
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs Linux 6.1")
	}
	check(t, err)
	_, err = unix.Write(fd, []byte("hello"))
	check(t, err)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("listed %v, %v", names, err)
	}
	check(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/named", unix.AT_SYMLINK_FOLLOW))
	check(t, unix.Close(fd))
	if b, err := os.ReadFile(dir + "/named"); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if st := lstat(t, dir+"/named"); st.Nlink != 1 || st.Mode&0o777 != 0o600 {
		t.Errorf("%d links, mode %o", st.Nlink, st.Mode)
	}
	fd, err = unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o640)
	check(t, err)
	wantErrno(t, "linking an exclusive one", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/x", unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	check(t, unix.Close(fd))
}
