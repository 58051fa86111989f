package test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cluster"
)

// stressFlag is how long two mounts work in the same directories.
var stressFlag = flag.Duration("stress.time", 15*time.Second, "how long two mounts work in the same directories")

const (
	// stressEnv makes this binary a worker: it is the directory to work in, and stressSeed what it draws from.
	stressEnv  = "CFS_TEST_STRESS"
	stressSeed = "CFS_TEST_STRESS_SEED"
	// stressWorkers are those on each mount.
	stressWorkers = 3
	stressDirs    = 2
	stressNames   = 12
	// stallAfter is how long a worker may take over one operation. A deadlock that only the end of a lease resolves takes
	// 1.5 s; this is for a machine that is busy with much else.
	stallAfter = 30 * time.Second
)

// stress works in dir until it is killed, and says so after each operation.
func stress(dir string) error {
	debug.SetPanicOnFault(true)
	seed, err := strconv.ParseUint(os.Getenv(stressSeed), 10, 64)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for {
		what := rng.IntN(len(stressOps))
		if err := stressOps[what](dir, rng); err != nil && !expected(err) {
			return fmt.Errorf("operation %d: %w", what, err)
		}
		if _, err := os.Stdout.Write([]byte{'0' + byte(what)}); err != nil {
			return err
		}
	}
}

// expected reports what others may do to an operation: they take names away, or make them.
func expected(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.EEXIST, unix.ESTALE, unix.EXDEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func anyName(dir string, rng *rand.Rand) string {
	return filepath.Join(dir, fmt.Sprint("d", rng.IntN(stressDirs)), fmt.Sprint("n", rng.IntN(stressNames)))
}

// stressOps are what the workers do. A file never gets shorter, so that a mapping of its first page stays valid.
var stressOps = []func(dir string, rng *rand.Rand) error{
	func(dir string, rng *rand.Rand) error { // create
		return withFile(anyName(dir, rng), os.O_CREATE|os.O_EXCL|os.O_WRONLY, func(f *os.File) error {
			_, err := f.Write(content(rng.Uint64(), pageBytes))
			return err
		})
	},
	func(dir string, rng *rand.Rand) error { return os.Rename(anyName(dir, rng), anyName(dir, rng)) },
	func(dir string, rng *rand.Rand) error { return os.Remove(anyName(dir, rng)) },
	func(dir string, rng *rand.Rand) error { // write in place, or at the end
		return withFile(anyName(dir, rng), os.O_WRONLY|rng.IntN(2)*os.O_APPEND, func(f *os.File) error {
			_, err := f.Write(content(rng.Uint64(), 100))
			return err
		})
	},
	func(dir string, rng *rand.Rand) error { return stressMap(anyName(dir, rng), rng.IntN(2) == 0) },
	func(dir string, rng *rand.Rand) error { // list
		d := filepath.Join(dir, fmt.Sprint("d", rng.IntN(stressDirs)))
		list, err := os.ReadDir(d)
		for _, e := range list {
			if _, err := e.Info(); err != nil && !expected(err) {
				return err
			}
		}
		return err
	},
	func(dir string, rng *rand.Rand) error { _, err := os.ReadFile(anyName(dir, rng)); return err },
	func(dir string, rng *rand.Rand) error {
		return os.Chmod(anyName(dir, rng), 0o600+os.FileMode(rng.IntN(64)))
	},
}

// stressMap reads the first page of a file by a mapping, or changes it.
func stressMap(path string, change bool) error {
	return withFile(path, os.O_RDWR, func(f *os.File) (err error) {
		info, err := f.Stat()
		if err != nil || info.Size() < pageBytes {
			return err
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() {
			if fault := recover(); fault != nil {
				err = fmt.Errorf("page fault: %v", fault)
			}
			err = errors.Join(err, unix.Munmap(mem))
		}()
		if bytes.Count(mem, []byte{0}) == pageBytes {
			return errors.New("a page of zeros: nobody has written one")
		}
		if change {
			mem[200]++
		}
		return nil
	})
}

// stressWorker is a process that works, and when it last had done something.
type stressWorker struct {
	cmd  *exec.Cmd
	done atomic.Int64
	last atomic.Int64 // Unix ns
	err  chan error
}

func newStressWorker(t *testing.T, m *cluster.Mount, seed int) *stressWorker {
	t.Helper()
	w := &stressWorker{cmd: exec.Command(os.Args[0]), err: make(chan error, 1)}
	w.cmd.Env = append(os.Environ(), stressEnv+"="+m.Point, stressSeed+"="+fmt.Sprint(seed))
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	w.cmd.Stderr = &said
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.last.Store(time.Now().UnixNano())
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 512)
		for {
			n, err := out.Read(b)
			w.done.Add(int64(n))
			w.last.Store(time.Now().UnixNano())
			if err != nil {
				err = w.cmd.Wait()
				w.err <- fmt.Errorf("%w: %s", err, said.String())
				return
			}
		}
	}()
	return w
}

// kernelStacks is where the threads of a process are in the kernel.
func kernelStacks(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, path := range tasks {
		stack, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %v\n%s", path, err, stack)
	}
	return b.String()
}

// TestTwoMountsInOnePlace: programs on two mounts make, rename, write, map, list and remove the same few names. None of them
// comes to a halt, and in the end both mounts have the same.
func TestTwoMountsInOnePlace(t *testing.T) {
	c := start(t, nil)
	var mounts []*cluster.Mount
	for _, name := range []string{"a", "b"} { // whose life the workers bound
		m, err := c.Mount(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, m)
	}
	defer func() {
		for _, m := range mounts {
			if t.Failed() {
				t.Logf("mount %s:\n%s", m.Name, cluster.Tail(m.LogPath(), 15))
			}
		}
	}()
	for d := range stressDirs {
		if err := os.Mkdir(filepath.Join(mounts[d%2].Point, fmt.Sprint("d", d)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var workers []*stressWorker
	for i := range 2 * stressWorkers {
		workers = append(workers, newStressWorker(t, mounts[i%2], i))
	}
	defer func() {
		for _, w := range workers {
			w.cmd.Process.Kill()
		}
	}()
	var slowest time.Duration
	for end := time.Now().Add(*stressFlag); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for i, w := range workers {
			idle := time.Since(time.Unix(0, w.last.Load()))
			slowest = max(slowest, idle)
			select {
			case err := <-w.err:
				t.Fatalf("worker %d has ended: %v", i, err)
			default:
			}
			if idle > stallAfter {
				for j, w := range workers {
					t.Logf("worker %d:\n%s", j, kernelStacks(w.cmd.Process.Pid))
				}
				for _, m := range mounts {
					t.Logf("mount %s:\n%s", m.Name, kernelStacks(m.Process.PID))
					syscall.Kill(m.Process.PID, syscall.SIGQUIT)
					time.Sleep(time.Second)
					t.Logf("its goroutines:\n%s", cluster.Tail(m.LogPath(), 2000))
				}
				t.Fatalf("worker %d has done nothing for %v", i, idle)
			}
		}
	}
	total := int64(0)
	for i, w := range workers {
		if w.done.Load() == 0 {
			t.Errorf("worker %d has done nothing", i)
		}
		total += w.done.Load()
		w.cmd.Process.Kill()
		<-w.err
	}
	t.Logf("%d operations by %d workers in %v; the longest pause of one was %v", total, len(workers), *stressFlag, slowest)
	for _, m := range mounts {
		v := counters(t, m)
		t.Logf("mount %s: %.0f notifications, %.0f recalls acknowledged before the kernel had forgotten all, %.0f requests", m.Name,
			v["claudefs_fuse_notifications_total"], v["claudefs_client_forgets_late_total"], v["claudefs_fuse_requests_total"])
	}
	for n := range c.Nodes() {
		v, err := c.NodeMetrics(t.Context(), n+1)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("node %d: %.0f recalls, leases of sessions lapsed %.0f times", n+1, v["claudefs_raft_recalls_total"], v["claudefs_raft_lease_lapses_total"])
	}
	eventually(t, "both mounts have the same", func() bool { return stressState(mounts[0]) == stressState(mounts[1]) },
		func() string { return stressState(mounts[0]) + "\nand\n" + stressState(mounts[1]) })
}

// stressState is all names, attributes and contents, as a mount has them.
func stressState(m *cluster.Mount) string {
	s := scene{}
	var b strings.Builder
	for d := range stressDirs {
		dir := fmt.Sprint("d", d)
		fmt.Fprintln(&b, listText(s.in(m, dir)))
		for n := range stressNames {
			path := s.in(m, filepath.Join(dir, fmt.Sprint("n", n)))
			data, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %s %x %v\n", filepath.Base(path), statText(path), len(data), bare(err))
			fmt.Fprintf(&b, "%.32x\n", data)
		}
	}
	return b.String()
}
