package perf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// votersID is the cluster's id.
	votersID = "cfs-perf"
	voters   = 3
	// voterDeviceBytes is each voter's device, which holds nothing.
	voterDeviceBytes = 256 << 20
	// stopTimeout bounds the clean end of a server.
	stopTimeout = 30 * time.Second
	startPoll   = 2 * time.Millisecond
	clockTicks  = 100 // USER_HZ
)

// voterSet is a cluster of three servers that are children of this process, so
// that their processor time, memory and syncs can be had, and they can be killed.
type voterSet struct {
	cfs   string
	dir   string
	addrs []string
	nodes [voters]*voter
	notes func(format string, args ...any)
}

// voter is a running server.
type voter struct {
	cmd   *exec.Cmd
	said  *bytes.Buffer
	ended chan struct{} // closed when it has been waited for
	syncs *syncCounter  // nil where they cannot be counted
}

// newVoters makes the files of a cluster below dir, which is made.
func newVoters(program, dir string) (*voterSet, error) {
	v := &voterSet{cfs: program, dir: dir, notes: func(string, ...any) {}}
	for i := range voters {
		addr, err := freeAddr()
		if err == nil {
			v.addrs = append(v.addrs, addr)
			err = os.MkdirAll(v.nodeDir(i), 0o700)
		}
		if err == nil {
			err = os.WriteFile(v.device(i), nil, 0o600)
		}
		if err == nil {
			err = os.Truncate(v.device(i), voterDeviceBytes)
		}
		if err != nil {
			return nil, cfs.E("make a cluster in "+dir, cfs.KindOf(err), err)
		}
	}
	return v, nil
}

// freeAddr is an address that nobody listens on now.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

func (v *voterSet) nodeDir(i int) string { return filepath.Join(v.dir, "node-"+strconv.Itoa(i+1)) }
func (v *voterSet) device(i int) string  { return filepath.Join(v.nodeDir(i), "device") }

// raftDir is where server i keeps its replica.
func (v *voterSet) raftDir(i int) string { return filepath.Join(v.nodeDir(i), "data", "raft") }

// start starts server i and counts its syncs from then on.
func (v *voterSet) start(i int) error {
	// A device is given by its path; nothing but the namespace is served from it.
	cmd := exec.Command(v.cfs, "server", "--cluster-id", votersID, "--node-id", strconv.Itoa(i+1), "--listen", v.addrs[i],
		"--data-dir", filepath.Join(v.nodeDir(i), "data"), "--device", v.device(i), "--seed-nodes", strings.Join(v.addrs, ","),
		"--scrub-rate", "0", "--restripe-rate", "0", "--log-level", "warn", "--tls", "off")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	n := &voter{cmd: cmd, said: &bytes.Buffer{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = n.said, n.said
	if err := cmd.Start(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return cfs.Errorf("start a server", cfs.NotFound, "%s is not there: build it (make build), or name another with --cfs", v.cfs)
		}
		return cfs.E("start a server", cfs.KindOf(err), err)
	}
	v.nodes[i] = n
	go func() {
		// How it ended, whoever ends it says; one that ended unasked does not answer any more.
		_ = cmd.Wait()
		close(n.ended)
	}()
	var err error
	if n.syncs, err = countSyncs(cmd.Process); err != nil {
		v.notes("syncs are not counted: %v", err)
		n.syncs = nil
	}
	return nil
}

// startAll starts all servers and returns when one of them leads.
func (v *voterSet) startAll(ctx context.Context) error {
	for i := range v.nodes {
		if err := v.start(i); err != nil {
			return err
		}
	}
	_, err := v.leader(ctx)
	return err
}

// leader is the number of the server that leads, from 0.
func (v *voterSet) leader(ctx context.Context) (int, error) {
	const op = "look for the leader"
	for deadline := time.Now().Add(stateTimeout); ; {
		for i, n := range v.nodes {
			if n == nil {
				continue
			}
			select {
			case <-n.ended:
				return 0, cfs.Errorf(op, cfs.Unavailable, "server %d has ended: %s", i+1, strings.TrimSpace(n.said.String()))
			default:
			}
			// One that is just starting does not answer: it is asked again.
			if r, err := askStatus(ctx, v.addrs[i]); err == nil && r.LeaderId == r.NodeId && r.LeaderId != 0 {
				return i, nil
			}
		}
		if time.Now().After(deadline) {
			return 0, cfs.Errorf(op, cfs.Timeout, "not within %s", stateTimeout)
		}
		if err := pause(ctx, startPoll); err != nil {
			return 0, err
		}
	}
}

// kill ends server i at once.
func (v *voterSet) kill(i int) error {
	n := v.nodes[i]
	v.nodes[i] = nil
	err := n.cmd.Process.Kill()
	<-n.ended
	if n.syncs != nil {
		err = errors.Join(err, n.syncs.close())
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return cfs.E("kill server "+strconv.Itoa(i+1), cfs.KindOf(err), err)
	}
	return nil
}

// stop ends all servers that run as a person would.
func (v *voterSet) stop() error {
	for _, n := range v.nodes {
		if n != nil {
			// One that has ended by itself is no failure of the stop.
			_ = n.cmd.Process.Signal(unix.SIGTERM)
		}
	}
	var err error
	late := time.After(stopTimeout)
	for i, n := range v.nodes {
		if n == nil {
			continue
		}
		select {
		case <-n.ended:
		case <-late:
			err = errors.Join(err, cfs.Errorf("stop server "+strconv.Itoa(i+1), cfs.Timeout, "not within %s", stopTimeout))
		}
		err = errors.Join(err, v.kill(i))
	}
	return err
}

// cpu is the processor time of all servers.
func (v *voterSet) cpu() (time.Duration, error) {
	var ticks uint64
	for _, n := range v.nodes {
		if n == nil {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
		if err != nil {
			return 0, cfs.E("read a server's times", cfs.KindOf(err), err)
		}
		f := statFields(text)
		if len(f) < 13 {
			return 0, cfs.Errorf("read a server's times", cfs.Corrupt, "%q", text)
		}
		for _, field := range f[11:13] { // utime, stime
			t, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return 0, cfs.E("read a server's times", cfs.Corrupt, err)
			}
			ticks += t
		}
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

// memory is the most memory that one of the servers has had, in bytes.
func (v *voterSet) memory() (int64, error) {
	most := int64(0)
	for _, n := range v.nodes {
		if n == nil {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
		if err != nil {
			return 0, cfs.E("read a server's memory", cfs.KindOf(err), err)
		}
		_, rest, _ := strings.Cut(string(text), "VmHWM:")
		var kib int64
		if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
			return 0, cfs.E("read a server's memory", cfs.Corrupt, err)
		}
		most = max(most, kib<<10)
	}
	return most, nil
}

// syncs are what each server has synced since it started; nil where that is not counted.
func (v *voterSet) syncs() ([]uint64, error) {
	var all []uint64
	for _, n := range v.nodes {
		if n == nil || n.syncs == nil {
			return nil, nil
		}
		c, err := n.syncs.count()
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
