package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/pki"
)

// joiner is a server that is no founder, as a process.
type joiner struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

// run starts the server with arguments.
func (j *joiner) run(args ...string) {
	j.t.Helper()
	j.out.Reset()
	j.cmd = exec.Command(binary, args...)
	j.cmd.Stdout, j.cmd.Stderr = &j.out, &j.out
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := j.cmd.Start(); err != nil {
		j.t.Fatal(err)
	}
}

// end stops the server and wants it to have gone well.
func (j *joiner) end() {
	j.t.Helper()
	if j.cmd == nil {
		return
	}
	_ = j.cmd.Process.Signal(syscall.SIGTERM)
	if err := j.cmd.Wait(); err != nil {
		j.t.Errorf("the server that joined: %v\n%s", err, j.out.String())
	}
	j.cmd = nil
}

func newJoiner(t *testing.T, c *cluster.Cluster) *joiner {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	j := &joiner{t: t, dir: filepath.Join(c.Dir(), "joiner"), addr: ln.Addr().String()}
	if err := os.Mkdir(j.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dev-a", "dev-b"} {
		if err := os.WriteFile(filepath.Join(j.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(j.dir, name), 512<<20); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if j.cmd != nil {
			_ = j.cmd.Process.Kill()
			_ = j.cmd.Wait()
		}
		os.RemoveAll(j.dir)
	})
	return j
}

// roles is what `cfs admin nodes` says of the nodes, by id.
func roles(t *testing.T, c *cluster.Cluster) map[string]string {
	out := map[string]string{}
	for _, line := range strings.Split(admin(t, c, "nodes"), "\n") {
		if f := strings.Fields(line); len(f) > 3 {
			out[f[0]] = f[2] + " " + f[3]
		}
	}
	return out
}

// restart starts a node's process. What the launcher calls usable has no other servers than its
// own, so it is not waited for.
func restart(t *testing.T, c *cluster.Cluster, id int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Restart(ctx, id); err != nil {
		t.Logf("node %d: %v", id, err)
	}
}

// A server joins, takes the place of a voter, resumes, is drained and forgotten; a voter
// whose directory was lost is refused.
func TestServersJoinAndLeave(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.TLS = true })
	m := mount(t, c, "mnt")
	r := newRecord()
	r.fill(t, m.Point, "before", 4, 1<<20)

	j := newJoiner(t, c)
	join := []string{"server", "join", "--seed", strings.Join(c.Addrs(), ","), "--node-id", "4", "--listen", j.addr,
		"--data-dir", filepath.Join(j.dir, "data"), "--device", filepath.Join(j.dir, "dev-a") + "," + filepath.Join(j.dir, "dev-b")}
	refused(t, "cfs admin token create", join...)
	j.run(append(join, "--token", strings.TrimSpace(admin(t, c, "token", "create", "--role", "storage")))...)
	eventually(t, "node 4 stores", func() bool { return roles(t, c)["4"] == "up storage" })
	admin(t, c, "voter", "replace", "3", "4", "--wait")
	if got := roles(t, c); got["3"] != "up storage" || !strings.HasPrefix(got["4"], "up ") || got["4"] == "up storage" {
		t.Errorf("the roles are %v", got)
	}
	r.fill(t, m.Point, "replaced", 4, 1<<20)
	admin(t, c, "fsck")
	j.end()
	j.run("server", "--data-dir", filepath.Join(j.dir, "data"))
	eventually(t, "node 4 is back", func() bool { return strings.HasPrefix(roles(t, c)["4"], "up ") })

	// Node 2 loses its replica: it must not vote.
	if err := c.Kill(2); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(c.Dir(), "node-2", "data", "raft")); err != nil {
		t.Fatal(err)
	}
	restart(t, c, 2)
	eventually(t, "node 2 has said why", func() bool {
		log, err := os.ReadFile(c.LogPath(2))
		return err == nil && bytes.Contains(log, []byte("cfs admin voter remove 2"))
	})
	eventually(t, "node 2 has ended", func() bool { return !c.Alive(2) })
	admin(t, c, "voter", "remove", "2", "--wait")
	restart(t, c, 2)
	eventually(t, "node 2 stores", func() bool { return roles(t, c)["2"] == "up storage" })
	admin(t, c, "voter", "add", "2", "--wait")
	admin(t, c, "voter", "replace", "4", "3", "--wait")
	admin(t, c, "node", "drain", "4", "--wait")
	j.end()
	eventually(t, "node 4 is forgotten", func() bool {
		cmd := exec.Command(binary, "admin", "node", "remove", "4", "--server", c.AdminAddr(1))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Log(strings.TrimSpace(string(out)))
		}
		return err == nil
	})
	if got := fmt.Sprint(roles(t, c)["4"]); got != "" {
		t.Errorf("node 4 is %s", got)
	}
	// Its certificate is good for nothing any more.
	store, err := pki.OpenStore(filepath.Join(j.dir, "data", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	powerless(t, c, store)
	remount(t, m)
	r.readAll(t, m.Point, "at the end")
}

// A voter that loses its whole data directory, certificate included, comes back under its id, with its devices.
func TestWholeDirectoryLost(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.TLS = true })
	m := mount(t, c, "mnt")
	r := newRecord()
	r.fill(t, m.Point, "before", 4, 1<<20)
	if err := c.Kill(2); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(c.Dir(), "node-2", "data")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	admin(t, c, "voter", "remove", "2", "--wait")
	eventually(t, "node 2 is down", func() bool {
		return strings.HasPrefix(roles(t, c)["2"], "down") || strings.HasPrefix(roles(t, c)["2"], "out")
	})
	j := newJoiner(t, c)
	j.run("server", "join", "--seed", c.Addrs()[0], "--node-id", "2", "--listen", c.Addrs()[1], "--data-dir", data,
		"--device", c.DevicePath(2, 0)+","+c.DevicePath(2, 1), "--token", strings.TrimSpace(admin(t, c, "token", "create", "--role", "storage")))
	eventually(t, "node 2 stores", func() bool { return roles(t, c)["2"] == "up storage" })
	admin(t, c, "voter", "add", "2", "--wait")
	remount(t, m)
	r.readAll(t, m.Point, "at the end")
	j.end()
}
