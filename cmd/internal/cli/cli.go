package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
)

// The exit statuses.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// Main runs a command line until it ends or SIGINT or SIGTERM cancels its
// context, prints an error as one line and returns the exit status. A second
// signal ends the process at once.
func Main(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return Run(ctx, root, os.Stderr)
}

// Run is Main with the context and standard error given.
func Run(ctx context.Context, root *cobra.Command, stderr io.Writer) int {
	root.SilenceErrors, root.SilenceUsage, root.DisableSuggestions = true, true, true
	root.CompletionOptions.DisableDefaultCmd = true
	started := false
	prepare(root, &started)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(stderr, "%s: %s\n", cmd.CommandPath(), OneLine(err))
	if !started || cfs.KindOf(err) == cfs.Usage {
		return ExitUsage
	}
	return ExitFailed
}

// prepare makes commands without an action ask for one of theirs, and notes
// when an action starts.
func prepare(cmd *cobra.Command, started *bool) {
	if !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cfs.Errorf("", cfs.Usage, "unknown command %q: want one of %s", args[0], childNames(c))
			}
			return cfs.Errorf("", cfs.Usage, "missing command: one of %s", childNames(c))
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return run(c, args)
		}
	}
	for _, child := range cmd.Commands() {
		prepare(child, started)
	}
}

func childNames(cmd *cobra.Command) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return strings.Join(names, ", ")
}

// OneLine is an error's text without line breaks, and without the kind's own
// word where the kind is Usage, because the exit status says that.
func OneLine(err error) string {
	text := err.Error()
	if cfs.KindOf(err) == cfs.Usage {
		text = strings.Replace(text, cfs.Usage.Error()+": ", "", 1)
	}
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// Usage is a wrong command line: flag (or argument) and what is wrong with it.
func Usage(flag, format string, args ...any) error {
	return cfs.Errorf(flag, cfs.Usage, format, args...)
}

// NewLogger logs text to w from the level named debug, info, warn or error on.
func NewLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, Usage("--log-level", "%q is none of debug, info, warn, error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}
