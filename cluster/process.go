package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// pollInterval is how often a condition that nobody announces is looked at.
	pollInterval = 20 * time.Millisecond
	// tailBytes of a log go into an error that a process caused.
	tailBytes = 4 << 10
)

// process is one of the cluster's processes: a child of this one, or one that
// the state file told of (then reaped is nil).
type process struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // field 22 of proc_pid_stat(5): tells a reused pid
	Log        string `json:"log"`

	reaped chan struct{} // closed when the child has been waited for
}

// spawner starts children from one thread. PR_SET_PDEATHSIG fires when the
// thread that forked ends, not the process (prctl(2)), and the runtime ends threads.
type spawner struct {
	work chan func()
	once sync.Once
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread() // a goroutine that ends while locked ends its thread
		for f := range s.work {
			f()
		}
	}()
	return s
}

// close ends the spawner's thread; it may be called again.
func (s *spawner) close() { s.once.Do(func() { close(s.work) }) }

// start runs argv with its output appended to logPath.
func (s *spawner) start(argv, env []string, logPath string, dieWithParent syscall.Signal) (*process, error) {
	op := "start " + strings.Join(argv, " ")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	// A group of its own keeps a terminal's Ctrl-C from reaching it: the owner decides the order of death.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: dieWithParent}
	if dieWithParent == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	done := make(chan error)
	s.work <- func() { done <- cmd.Start() }
	if err := <-done; err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	p := &process{PID: cmd.Process.Pid, Log: logPath, reaped: make(chan struct{})}
	p.StartTicks, _, err = procStat(p.PID) // a child that has not been waited for keeps its pid
	go func() {
		cmd.Wait()
		close(p.reaped)
	}()
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return p, nil
}

// procStat reads when a process started, in clock ticks since boot, and whether it has
// ended: it is a zombie, and none of its threads is left, which could hold its sockets.
func procStat(pid int) (startTicks uint64, ended bool, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	i := bytes.LastIndexByte(raw, ')') // the name before it may hold anything
	f := strings.Fields(string(raw[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, false, cfs.Errorf(fmt.Sprintf("read /proc/%d/stat", pid), cfs.Corrupt, "%q", raw)
	}
	startTicks, err = strconv.ParseUint(f[19], 10, 64)
	return startTicks, f[0] == "X" || f[0] == "Z" && (f[17] == "0" || f[17] == "1"), err
}

// alive reports that the process runs. It is safe on nil.
func (p *process) alive() bool {
	if p == nil {
		return false
	}
	if p.reaped != nil {
		select {
		case <-p.reaped:
			return false
		default:
		}
	}
	ticks, ended, err := procStat(p.PID)
	return err == nil && ticks == p.StartTicks && !ended
}

// signal sends sig if the process is still the one that was started.
func (p *process) signal(sig syscall.Signal) {
	if p == nil {
		return
	}
	// FindProcess holds a pidfd: what is checked after it is what is signalled.
	h, err := os.FindProcess(p.PID)
	if err != nil {
		return
	}
	defer h.Release()
	if p.alive() {
		h.Signal(sig)
	}
}

// wait returns when the process has ended.
func (p *process) wait(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for p.alive() {
		select {
		case <-ctx.Done():
			return cfs.E(fmt.Sprintf("wait for process %d to end", p.PID), cfs.Timeout, ctx.Err())
		case <-p.reaped: // nil, so never, for another's child
		case <-tick.C:
		}
	}
	return nil
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(syscall.SIGKILL)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.wait(ctx) // a killed process ends; one stuck in the kernel is beyond help
}

// terminate asks the process to end and kills it when it has not after grace.
func (p *process) terminate(grace time.Duration) {
	if p == nil {
		return
	}
	p.signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if p.wait(ctx) != nil {
		p.kill()
	}
}

// died is the error of a process that ended unasked, with the end of its log.
func (p *process) died(op string) error {
	return cfs.Errorf(op, cfs.Unavailable, "the process ended; its log %s ends:\n%s", filepath.Base(p.Log), Tail(p.Log, 8))
}

// Tail is the last n lines of a file, indented; what cannot be read is empty.
func Tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > tailBytes {
		f.Seek(-tailBytes, io.SeekEnd)
	}
	raw, _ := io.ReadAll(io.LimitReader(f, tailBytes))
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	return "  " + strings.Join(lines, "\n  ")
}
