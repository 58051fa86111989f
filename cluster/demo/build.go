package demo

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// program is the Go program that the demo builds inside the mount and runs on
// the tree beside it: it prints how many regular files there are and a SHA-256
// of their names and bytes.
//
//go:embed testdata/sum.go.txt
var program []byte

// buildDir is where in the mount it is built, with the compiler's cache and temporary files.
const buildDir = "build"

// build writes the program into the mount, builds it there, runs it on the copied tree and compares.
func (d *demo) build(ctx context.Context) error {
	dir := filepath.Join(d.point, buildDir)
	for _, sub := range []string{"", "cache", "tmp", "mod"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return cfs.E("make "+dir, cfs.KindOf(err), err)
		}
	}
	for name, text := range map[string][]byte{"main.go": program, "go.mod": []byte("module sum\n\ngo 1.21\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return cfs.E("write "+name, cfs.KindOf(err), err)
		}
	}
	begun := time.Now()
	d.out.progress("go build, its cache inside the mount")
	_, err := d.command(ctx, dir, []string{
		"GOCACHE=" + filepath.Join(dir, "cache"), "GOTMPDIR=" + filepath.Join(dir, "tmp"), "GOMODCACHE=" + filepath.Join(dir, "mod"),
		"GOPROXY=off", "GOTOOLCHAIN=local", "GOENV=off", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on", "CGO_ENABLED=0", "GOTELEMETRY=off",
	}, d.tools.goCommand, "build", "-o", "sum", ".")
	if err != nil {
		return err
	}
	d.rates.build = time.Since(begun)

	d.out.progress("running what was built")
	got, err := d.command(ctx, dir, nil, filepath.Join(dir, "sum"), filepath.Join(d.point, treeDir))
	if err != nil {
		return err
	}
	want, err := treeSum(d.tree)
	if err != nil {
		return err
	}
	if strings.TrimSpace(got) != want {
		return cfs.Errorf("run the program on the tree", cfs.Corrupt, "it printed %q, should print %q", strings.TrimSpace(got), want)
	}
	list, err := scan(ctx, d.point, buildDir)
	if err != nil {
		return err
	}
	d.want.add(list...)
	d.out.result("built in %s, ran, and agreed on the tree's SHA-256; %s files of the build join what is verified", seconds(d.rates.build), count(len(list)))
	return nil
}

// treeSum is what the program prints, computed from the tree's source.
func treeSum(tree []entry) (string, error) {
	h, n := sha256.New(), 0
	for _, e := range tree { // in the order of filepath.WalkDir
		if !e.mode.IsRegular() {
			continue
		}
		rel, err := filepath.Rel(treeDir, e.rel)
		if err != nil {
			return "", cfs.E("sum the tree", cfs.Invalid, err)
		}
		io.WriteString(h, rel)
		f, err := os.Open(e.source)
		if err != nil {
			return "", cfs.E("sum the tree", cfs.KindOf(err), err)
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", cfs.E("sum the tree", cfs.KindOf(err), err)
		}
		n++
	}
	return fmt.Sprintf("%d files %x", n, h.Sum(nil)), nil
}

// command runs a program in a group of its own, which ends with ctx, and returns what it printed.
func (d *demo) command(ctx context.Context, dir string, env []string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", cfs.Errorf("run "+strings.Join(argv, " "), cfs.IO, "%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
