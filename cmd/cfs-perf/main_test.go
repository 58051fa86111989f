package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/iopath"
	"github.com/claudefs/claudefs/perf"
)

// testPatience bounds every command; a test that reaches it has failed.
const testPatience = 60 * time.Second

// bin is the command that TestMain has built.
var bin string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cfs-perf-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "cfs-perf")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// run runs the command and returns its exit status and output.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%v: %v\n%s", args, err, errOut.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// mustRun is run for a command that succeeds; it returns its standard output.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t, args...)
	if code != 0 {
		t.Fatalf("%v: exit %d: %s", args, code, stderr)
	}
	return stdout
}

func needRing(t *testing.T) {
	t.Helper()
	ring, err := iopath.NewRing(iopath.RingConfig{Entries: 8})
	if err != nil {
		t.Skip("no io_uring: ", err)
	}
	ring.Close()
}

func TestUsage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	for _, c := range []struct{ args, want string }{
		{"", "missing command: one of bench, fio, gate"},
		{"bench", "missing command: one of clean, ec, file, io, log, meta, open"},
		{"bench io", `required flag(s) "device" not set`},
		{"bench io --device PATH --engine libaio", "--engine: \"libaio\" is none of native"},
		{"bench io --device PATH --bs 5", "--bs: 5 bytes"},
		{"bench io --device PATH --bs big", "is no size"},
		{"bench io --device PATH --rw trim", "--rw: \"trim\""},
		{"bench io --device PATH --depth 0", "--depth"},
		{"bench io --device PATH --rounds 0", "--rounds"},
		{"bench io --device PATH --format xml", "--format"},
		{"bench io --device PATH --json --format benchfmt", "--json"},
		{"bench io --device PATH --profile heat", "--profile: \"heat\" is none of cpu, mem, block, trace"},
		{"bench log --device PATH --depth 0", "--depth"},
		{"bench open --device PATH --records 0", "--records"},
		{"bench clean --live 2", "--live"},
		{"bench ec --working-set 1MiB", "--working-set"},
		{"bench file --shape up", "--shape: \"up\" is none of overwrite"},
		{"bench file --mount PATH --shape slow", "--shape: slow breaks the cluster"},
		{"bench file --mount PATH --shape overwrite", "it needs --server"},
		{"bench file --file 1MiB", "--file"},
		{"bench file --runtime 0s", "--runtime"},
		{"bench file --settle -1s", "--settle"},
		{"bench file --rounds 0", "--rounds"},
		{"fio --device PATH --rounds -1", "--rounds"},
		{"gate --profile nightly", "--profile: \"nightly\" is none of ci"},
	} {
		code, stdout, stderr := run(t, strings.Fields(strings.ReplaceAll(c.args, "PATH", path))...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", c.args, code, stdout, stderr)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%q made the file", c.args)
		}
	}
}

func TestFailures(t *testing.T) {
	needRing(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "data")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"bench io --engine pread --rw write --device PATH", "file exists: a bench that writes would destroy what it holds (--force lets it)"},
		{"bench log --device PATH", "--force"},
		{"fio --device PATH", "--force"},
		{"bench io --engine pread --device DIR/none/data", "no such file"},
		{"gate --targets DIR", "there is no *.json"},
	} {
		args := strings.NewReplacer("PATH", path, "DIR", dir).Replace(c.args)
		if code, _, stderr := run(t, strings.Fields(args)...); code != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit %d, %q", c.args, code, stderr)
		}
	}
	code, _, stderr := run(t, "bench", "io", "--engine", "iouring-go", "--device", path)
	if code != 1 || !strings.Contains(stderr, "-tags iouringgo -ldflags=-checklinkname=0") {
		t.Errorf("an engine that is not built in: exit %d, %q", code, stderr)
	}
}

func TestBenchIOOutput(t *testing.T) {
	needRing(t)
	dir := t.TempDir()
	args := []string{"bench", "io", "--device", filepath.Join(dir, "data"), "--size", "1MiB", "--engine", "native,pread", "--depth", "1,2", "--runtime", "10ms", "--rounds", "2"}
	table := mustRun(t, append(args, "--profile", "cpu", "--profile-dir", dir)...)
	lines := strings.Split(table, "\n")
	if !strings.HasPrefix(lines[0], "rw ") || !strings.Contains(lines[0], "IOPS") || len(lines) < 5 || !strings.Contains(lines[1], "native") || !strings.Contains(lines[4], "pread") {
		t.Errorf("table:\n%s", table)
	}
	if st, err := os.Stat(filepath.Join(dir, "cpu.pprof")); err != nil || st.Size() == 0 {
		t.Errorf("the profile: %v", err)
	}
	var rep perf.Report
	if err := json.Unmarshal([]byte(mustRun(t, append(args, "--json")...)), &rep); err != nil || len(rep.Rows) != 4 || len(rep.Rows[0].Rounds) != 2 {
		t.Errorf("%+v, %v", rep, err)
	}
	text := mustRun(t, append(args, "--format", "benchfmt")...)
	if strings.Count(text, "\nBenchmarkIO/") != 8 || !strings.Contains(text, "\nUnit op/s better=higher\n") {
		t.Errorf("benchfmt:\n%s", text)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestUncleanOpen(t *testing.T) {
	needRing(t)
	text := mustRun(t, "bench", "open", "--device", filepath.Join(t.TempDir(), "data"), "--records", "1000", "--segment-size", "1MiB", "--unclean", "--rounds", "1", "--json")
	var rep perf.Report
	if err := json.Unmarshal([]byte(text), &rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.Rows) != 2 || rep.Rows[0].Labels["state"] != "killed" || rep.Rows[0].Median[perf.Records] < 1000 {
		t.Errorf("%s", text)
	}
}

// A bench that is told to end while its cluster runs leaves no cluster, mount or file.
func TestInterruptedFileBench(t *testing.T) {
	needRing(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE: ", err)
	}
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("no fio: ", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "cfs-perf-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(t.TempDir(), "cfs")
	build := exec.Command("go", "build", "-o", program, "../cfs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.Command(bin, "bench", "file", "--cfs", program, "--dir", dir, "--file", "8MiB", "--device-size", "256MiB",
		"--shape", "syncwrite", "--rounds", "1000", "--runtime", "100ms")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(testPatience); !measuring(t, dir); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatalf("it does not begin: %s", said.String())
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "cfs-perf bench file") {
		t.Errorf("%v: %s", err, said.String())
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("still mounted: %v\n%s", err, mounts)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(dir)) {
			t.Errorf("still running: %s: %q", path, text)
		}
	}
}

// measuring reports that a bench has made its file in the mount of a cluster below dir.
func measuring(t *testing.T, dir string) bool {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "cfs-perf-*", "cluster", "mnt", "cfs-perf-*", "synced"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found) > 0
}

// gateTargets has one target that is met and one that cannot be.
const gateTargets = `{
  "bench": "io", "size": "1MiB",
  "params": {"engines": ["native"], "rw": "randread", "bs": "4KiB", "depth": [2], "runtime": "10ms", "rounds": 1},
  "targets": [
    {"name": "easy", "what": "w", "metric": "iops", "of": {"engine": "native"}, "op": ">=", "value": 1, "kind": "hard"},
    {"name": "vain", "what": "w", "metric": "iops", "of": {"engine": "native"}, "op": ">=", "value": 1e12, "kind": "KIND"}
  ]
}`

func TestGate(t *testing.T) {
	needRing(t)
	for kind, want := range map[string]int{perf.KindHard: 1, perf.KindReport: 0} {
		targets, dir := t.TempDir(), t.TempDir()
		if err := os.WriteFile(filepath.Join(targets, "io.json"), []byte(strings.Replace(gateTargets, "KIND", kind, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(targets, "out")
		code, stdout, stderr := run(t, "gate", "--targets", targets, "--dir", dir, "--out", out)
		if code != want {
			t.Errorf("%s: exit %d, %s", kind, code, stderr)
		}
		if missed := strings.Contains(stderr, "1 of 2 targets missed: vain"); missed != (want == 1) {
			t.Errorf("%s: %q", kind, stderr)
		}
		if strings.Contains(stdout, "MISSED") != (want == 1) || !strings.Contains(stdout, "easy") {
			t.Errorf("%s:\n%s", kind, stdout)
		}
		var rep perf.GateReport
		text, err := os.ReadFile(out)
		if err == nil {
			err = json.Unmarshal(text, &rep)
		}
		if err != nil || len(rep.Verdicts) != 2 || len(rep.Verdicts[1].Attempts) != map[string]int{perf.KindHard: 3, perf.KindReport: 1}[kind] {
			t.Errorf("%s: %v, %s", kind, err, text)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
			t.Errorf("left behind: %v, %v", names, err)
		}
	}
}

func TestBadTargetsNameFileAndField(t *testing.T) {
	targets := t.TempDir()
	if err := os.WriteFile(filepath.Join(targets, "io.json"), []byte(gateTargets), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := run(t, "gate", "--targets", targets)
	if code != 1 || !strings.Contains(stderr, "io.json") || !strings.Contains(stderr, "targets[1].kind") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}
