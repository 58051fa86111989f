package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/fuse"
)

// applied is what options make of a mount's flags.
func applied(text string, sloppy bool) (*mountFlags, *pflag.FlagSet, error) {
	f, fl := &mountFlags{}, pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.add(fl)
	return f, fl, f.apply(fl, text, sloppy)
}

func TestMountOptions(t *testing.T) {
	f, fl, err := applied("rw,_netdev,nofail,noauto,user=me,x-systemd.automount,comment=x,,noatime,exec,noexec,suid,nosuid,dev,allow_other,ro,uid=7,gid=0,cache_ttl=2s,token=secret,tls=off,timeout=3s", false)
	if err != nil {
		t.Fatal(err)
	}
	o := f.options
	if o.UID == nil || o.GID == nil || *o.UID != 7 || *o.GID != 0 {
		t.Errorf("owners %v, %v", o.UID, o.GID)
	}
	o.UID, o.GID = nil, nil
	if want := (fuse.Options{ReadOnly: true, NoAtime: true, NoExec: true, Dev: true, AllowOther: true}); o != want {
		t.Errorf("options %+v, want %+v", o, want)
	}
	if f.cacheTTL != 2*time.Second || f.identity.token != "secret" || bool(f.identity.tls) || f.timeout != 3*time.Second {
		t.Errorf("flags %+v", f)
	}
	f.servers = []string{"a:1", "b:2"}
	args := f.daemonArgs(fl, "/mnt/--x")
	if text := strings.Join(args, " "); strings.Contains(text, "secret") {
		t.Errorf("the token is shown to everybody: %s", text)
	}
	// The daemon makes the same of its arguments.
	again, fl2 := &mountFlags{}, pflag.NewFlagSet("test", pflag.ContinueOnError)
	again.add(fl2)
	words := fl2.StringP("options", "o", "", "")
	if err := errors.Join(fl2.Parse(args), again.apply(fl2, *words, false)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.servers, f.servers) || again.cacheTTL != f.cacheTTL || bool(again.identity.tls) || !fl2.Changed(timeoutFlag) ||
		*again.options.UID != 7 || !again.options.ReadOnly || !again.options.NoExec || again.options.Suid || !slices.Equal(fl2.Args(), []string{"/mnt/--x"}) {
		t.Errorf("%q became %+v", args, again)
	}
	for text, want := range map[string]string{
		"ro,frob": `"frob"`, "frob=1,ro": `"frob"`, "uid": "uid", "uid=root": "uid", "gid=-1": "gid", "uid=4294967295": "uid", "ro=1": "ro",
		"cache_ttl": "cache_ttl", "cache_ttl=soon": "cache_ttl", "cache-ttl=1s": `"cache-ttl"`, "server=x:1": `"server"`, "ready_fd=0": `"ready_fd"`,
		"foreground": `"foreground"`, "source=x": `"source"`, "remount,ro": "remount", "tls=maybe": "tls", "=": `""`,
	} {
		if _, _, err := applied(text, false); cfs.KindOf(err) != cfs.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if f, _, err := applied("frob,ro,grob=2", true); err != nil || !f.options.ReadOnly {
		t.Errorf("sloppy: %v, %+v", err, f.options)
	}
}

func needMount(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
}

// needTools skips a test where programs are missing.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
}

// inNamespaces runs a script of sh with $1 and so on in mount and process namespaces of its own: what it mounts nobody
// else sees, and daemons that it starts end with it.
func inNamespaces(t *testing.T, script string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	argv := append([]string{"-m", "-p", "-f", "--mount-proc", "--kill-child", "--propagation", "private", "sh", "-eu", "-c", script, "sh"}, args...)
	cmd := exec.CommandContext(ctx, "unshare", argv...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s\nafter:\n%s", err, errOut.String(), out.String())
	}
	return out.String()
}

// mountDir is a directory to mount on that others may enter.
func mountDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cfs-mount-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "mnt"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "mnt")
	t.Cleanup(func() {
		_ = syscall.Unmount(point, syscall.MNT_DETACH)
		_ = os.RemoveAll(dir) // what is mounted there, if anything, is in use and fails
	})
	return point
}

// mount(8), fstab, umount(8), findmnt(8) and df(1) with the helpers in place.
func TestMountHelpers(t *testing.T) {
	needMount(t)
	needTools(t, "unshare", "mount", "findmnt", "df")
	s := startServer(t, "cfs", "server")
	point := mountDir(t)
	const script = `bin=$1 addr=$2 point=$3
mount -t tmpfs none /sbin
ln -s $bin/cfs /sbin/mount.fuse.cfs
ln -s $bin/cfs /sbin/umount.fuse.cfs
fstab=/sbin/fstab
shows() { findmnt -n -o SOURCE,FSTYPE --mountpoint $point; df --output=source $point | tail -n 1; findmnt -n -o VFS-OPTIONS --mountpoint $point; }
fails() { if "$@" 2>/sbin/err; then echo "succeeded"; else echo "status $?"; fi; cat /sbin/err; }
echo "$addr:/ $point fuse.cfs _netdev,nofail,x-test=1,noatime,nosuid,tls=off,cluster_id=test 0 0" >$fstab
mount -T $fstab $point
shows
mkdir -p $point/a/b; echo deep >$point/a/b/c
umount $point
ls $point
mount -t fuse.cfs $addr,$addr:/a/b/ $point -o ro,noexec,suid,dev,uid=7,gid=8,tls=off
shows
cat $point/c; stat -c %u:%g $point/c
fails touch $point/new
fails umount --no-canonicalize $point/c
umount $point
fails mount -t fuse.cfs $addr:/ $point -o tls=off,frob=1
fails mount -t fuse.cfs $addr:/a/none $point -o tls=off
fails mount -t fuse.cfs $addr:/a/b/c $point -o tls=off
fails mount -t fuse.cfs nowhere $point -o tls=off
mount -s -t fuse.cfs $addr:/a $point -o tls=off,frob=1
ls $point
umount -l $point
echo done
`
	got := strings.ReplaceAll(inNamespaces(t, script, bin, s.addr, point), s.addr, "ADDR")
	sameLines(t, got, []string{
		"ADDR:/ fuse.cfs", "ADDR:/", "rw,nosuid,noatime",
		"ADDR,ADDR:/a/b/ fuse.cfs", "ADDR,ADDR:/a/b/", "ro,noexec,relatime", // what mount(8) strips is the default
		"deep", "7:8",
		"status 1", "*Read-only file system",
		"status *", "*not mounted*",
		"status 1", `mount.fuse.cfs: option "frob": unknown`,
		"status 32", "mount.fuse.cfs: directory /a/none of the cluster: no such file or directory",
		"status 32", "mount.fuse.cfs: directory /a/b/c of the cluster: not a directory",
		"status 1", "mount.fuse.cfs: source nowhere: want HOST:PORT[,HOST:PORT..]:/[PATH]",
		"b", "done",
	})
}

// sameLines compares lines with what each should be like.
func sameLines(t *testing.T, got string, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(got), "\n")
	for i := range max(len(lines), len(want)) {
		if i >= len(lines) || i >= len(want) {
			t.Fatalf("line %d: got %d lines, want %d, of\n%s", i, len(lines), len(want), got)
		}
		if line := strings.Join(strings.Fields(lines[i]), " "); !like(line, want[i]) {
			t.Errorf("line %d: %q, want %q, of\n%s", i, line, want[i], got)
		}
	}
}

// like compares a line with one in which * is anything.
func like(line, want string) bool {
	if !strings.Contains(want, "*") {
		return line == want
	}
	for part := range strings.SplitSeq(want, "*") {
		_, after, ok := strings.Cut(line, part)
		if !ok {
			return false
		}
		line = after
	}
	return true
}

// syncBuffer is a log that is written while it is read.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// mountNow starts a mount that serves in a process of the test.
func mountNow(t *testing.T, args ...string) (*exec.Cmd, *syncBuffer) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := &syncBuffer{}
	cmd := exec.Command(filepath.Join(bin, "cfs"), append([]string{"mount", "--foreground", "--tls=off", "--ready-fd=3"}, args...)...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{w}, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Dir = "/"
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_ = r.SetReadDeadline(time.Now().Add(testPatience))
	said, err := io.ReadAll(r)
	if string(said) != "ok\n" {
		t.Fatalf("the mount said %q (%v):\n%s", said, err, log)
	}
	return cmd, log
}

// ends waits for a process, which is to end with a status.
func ends(t *testing.T, cmd *exec.Cmd, log *syncBuffer, want int) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("exit status %d, want %d:\n%s", got, want, log)
		}
	case <-time.After(testPatience):
		t.Fatalf("the mount does not end:\n%s", log)
	}
}

// A user mounts through fusermount3, in a directory of his own, and nobody else gets in unless the machine's
// administrator allows to let others in.
func TestMountAsNobody(t *testing.T) {
	needMount(t)
	needTools(t, "unshare", "setpriv", "findmnt", "fusermount3")
	s := startServer(t, "cfs", "server")
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// The device and fuse.conf as they usually are, whatever they are here.
	const script = `bin=$1 addr=$2 point=$3; dir=$(dirname $point)
mknod $dir/fuse c 10 229; chmod 666 $dir/fuse; mount --bind $dir/fuse /dev/fuse
echo >$dir/fuse.conf; mount --bind $dir/fuse.conf /etc/fuse.conf
export XDG_RUNTIME_DIR=$dir
as() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
mounts() { as $bin/cfs mount $point --tls=off --server $addr "$@"; }
fails() { if "$@" 2>$dir/err; then echo "succeeded"; else echo "status $?"; fi; cat $dir/err; }
$bin/cfs mount $point --tls=off --server $addr; mkdir -m 777 $point/open; $bin/cfs umount $point
chown 65534:65534 $dir $point
mounts -o noatime
findmnt -n -o SOURCE,FSTYPE,OPTIONS --mountpoint $point
as sh -c "echo mine >$point/open/f; cat $point/open/f"
fails ls $point
as $bin/cfs umount $point
as ls -A $point
fails mounts -o suid
fails mounts -o dev
fails mounts -o allow_other
echo user_allow_other >$dir/fuse.conf
mounts -o allow_other,ro
cat $point/open/f
fails as touch $point/open/g
as $bin/cfs umount $point
echo done
`
	got := strings.ReplaceAll(inNamespaces(t, script, bin, s.addr, mountDir(t)), s.addr, "ADDR")
	sameLines(t, got, []string{
		"ADDR:/ fuse.cfs rw,nosuid,nodev,noatime,*user_id=65534,group_id=65534,default_permissions*", "mine",
		"status *", "*Permission denied*",
		"status 1", "*options suid and dev*root alone may mount so",
		"status 1", "*options suid and dev*root alone may mount so",
		"status 1", "*user_allow_other*/etc/fuse.conf*",
		"mine",
		"status *", "*Read-only file system",
		"done",
	})
}

// prepareRoot makes a directory in the root that everybody may write to.
func prepareRoot(t *testing.T, s *server) {
	t.Helper()
	point := mountDir(t)
	cmd, log := mountNow(t, point, "--server", s.addr)
	dir := filepath.Join(point, "open")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	// What a SIGTERM finds is written, and the mount goes.
	if err := os.WriteFile(filepath.Join(dir, "kept"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ends(t, cmd, log, 0)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still mounted: %v", err)
	}
}

// A daemon that is killed leaves ENOTCONN, and the next mount takes its place. What a SIGTERM
// finds is written; a second mount sees it.
func TestMountDeathAndEnd(t *testing.T) {
	needMount(t)
	s := startServer(t, "cfs", "server")
	point := mountDir(t)
	prepareRoot(t, s)
	cmd, log := mountNow(t, point, "--server", s.addr)
	if got, err := os.ReadFile(filepath.Join(point, "open", "kept")); err != nil || string(got) != "content" {
		t.Errorf("what was there at SIGTERM: %q, %v", got, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ends(t, cmd, log, -1)
	err := syscall.Statfs(point, new(syscall.Statfs_t))
	for errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.ECANCELED) { // while the kernel takes the rings down
		time.Sleep(10 * time.Millisecond)
		err = syscall.Statfs(point, new(syscall.Statfs_t))
	}
	if !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("a dead mount: %v", err)
	}
	cmd, log = mountNow(t, point, "--server", s.addr)
	if got, err := os.ReadFile(filepath.Join(point, "open", "kept")); err != nil || string(got) != "content" {
		t.Errorf("after the next mount: %q, %v", got, err)
	}
	mustRun(t, "cfs", "umount", point)
	ends(t, cmd, log, 0)
}

// A container that has a copy of the mount goes on after it was unmounted outside; who unmounts
// waits for what was written and not for the container. SIGTERM ends it there too.
func TestMountCopiedByANamespace(t *testing.T) {
	needMount(t)
	needTools(t, "unshare")
	s := startServer(t, "cfs", "server")
	point := mountDir(t)
	for _, how := range []string{"umount", "SIGTERM"} {
		cmd, log := mountNow(t, point, "--server", s.addr)
		container := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c",
			`echo ready; read go; echo inside >"$1/$2" && cat "$1/$2" 2>&1; read end`, "sh", point, how)
		container.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		container.Dir = "/"
		in, err1 := container.StdinPipe()
		out, err2 := container.StdoutPipe()
		if err := errors.Join(err1, err2, container.Start()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = container.Process.Kill()
			_ = container.Wait()
		})
		hears := func(want string) {
			t.Helper()
			b := make([]byte, 256)
			if n, err := out.Read(b); err != nil || !strings.Contains(string(b[:n]), want) {
				t.Fatalf("%s: the container said %q (%v), want %q:\n%s", how, b[:n], err, want, log)
			}
		}
		hears("ready")
		if err := os.WriteFile(filepath.Join(point, "outside"), []byte(how), 0o644); err != nil {
			t.Fatal(err)
		}
		if how == "umount" {
			mustRun(t, "cfs", "umount", point)
			_, _ = io.WriteString(in, "go\n")
			hears("inside")
			_, _ = io.WriteString(in, "end\n")
		} else {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		ends(t, cmd, log, 0)
		if n := strings.Count(log.String(), "in use elsewhere"); n != 1 || strings.Contains(log.String(), "giving up") {
			t.Errorf("%s: %d lines about the copy in\n%s", how, n, log)
		}
		_ = in.Close()
		_ = container.Wait()
	}
	cmd, log := mountNow(t, point, "--server", s.addr)
	for name, want := range map[string]string{"outside": "SIGTERM", "umount": "inside\n"} {
		if got, err := os.ReadFile(filepath.Join(point, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	mustRun(t, "cfs", "umount", point)
	ends(t, cmd, log, 0)
}
