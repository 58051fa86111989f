package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/cmd/internal/cli"
)

const (
	// readyFD is where a daemon finds the pipe to the process that started it.
	readyFD = 3
	// maxReport bounds what a daemon says about its start, in bytes.
	maxReport = 4096
	// daemonGrace is how much longer than its own limits a daemon may take to start.
	daemonGrace = 10 * time.Second
)

// A daemon reports its start in one line: "ok", or an exit status and why it failed.
const reportOK = "ok"

// startDaemon runs a command of this program again, with args, as a daemon of
// its own session and returns when it has reported. Its standard error is
// appended to logPath, or thrown away where that is empty.
func startDaemon(ctx context.Context, command string, args []string, logPath string, limit time.Duration) error {
	const op = "start the daemon"
	self, err := os.Executable()
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	if logPath == "" {
		logPath = os.DevNull
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer log.Close()
	report, child, err := os.Pipe()
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	defer report.Close()
	cmd := exec.Command(self, append([]string{command, fmt.Sprintf("--ready-fd=%d", readyFD)}, args...)...)
	cmd.Args[0] = programName // this program may have been started as mount(8)'s helper
	cmd.Dir = "/"             // keeps no other mount busy
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{child}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = child.Close()
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	_ = report.SetReadDeadline(time.Now().Add(limit + daemonGrace))
	stop := context.AfterFunc(ctx, func() { _ = report.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := io.ReadAll(io.LimitReader(report, maxReport))
	if err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if ctx.Err() != nil {
			return cfs.Errorf(op, cfs.Canceled, "interrupted")
		}
		return cfs.Errorf(op, cfs.Timeout, "it did not report within %s", limit+daemonGrace)
	}
	text := strings.TrimSpace(string(line))
	if text == reportOK {
		return cmd.Process.Release()
	}
	exit := cmd.Wait()
	return parseReport(op, text, exit)
}

// parseReport turns a daemon's failure into the error that it had.
func parseReport(op, text string, exit error) error {
	status, why, ok := strings.Cut(text, " ")
	code, err := strconv.Atoi(status)
	if !ok || err != nil {
		return cfs.Errorf(op, cfs.IO, "it ended without a word: %w (its log may say more: --log-file)", errors.Join(exit))
	}
	return &daemonError{code: code, text: why}
}

// daemonError is a daemon's failure, in its own words.
type daemonError struct {
	code int
	text string
}

// Error is the daemon's text.
func (e *daemonError) Error() string { return e.text }

// Unwrap is the kind that gives the daemon's exit status again.
func (e *daemonError) Unwrap() error {
	if e.code == cli.ExitUsage {
		return cfs.Usage
	}
	return cfs.IO
}

// reporter tells the process that started a daemon how that went.
type reporter struct {
	pipe *os.File // nil in the foreground
}

// newReporter takes the pipe over; fd 0 is none.
func newReporter(fd int) *reporter {
	if fd == 0 {
		return &reporter{}
	}
	syscall.CloseOnExec(fd)
	return &reporter{pipe: os.NewFile(uintptr(fd), "ready")}
}

// tell reports success, or err, and ends the pipe; only the first one counts.
func (r *reporter) tell(err error) {
	if r.pipe == nil {
		return
	}
	text := reportOK
	if err != nil {
		code := cli.ExitFailed
		if cfs.KindOf(err) == cfs.Usage {
			code = cli.ExitUsage
		}
		text = fmt.Sprintf("%d %s", code, cli.OneLine(err))
	}
	// Nobody may be listening any more: then nobody needs to know.
	_, _ = io.WriteString(r.pipe, text+"\n")
	_ = r.pipe.Close()
	r.pipe = nil
}
