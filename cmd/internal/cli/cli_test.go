package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/claudefs/claudefs/cfs"
)

func testTree() *cobra.Command {
	root := &cobra.Command{Use: "tool"}
	group := &cobra.Command{Use: "group"}
	var err error
	leaf := &cobra.Command{Use: "leaf", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		switch kind, _ := c.Flags().GetString("fail"); kind {
		case "usage":
			err = Usage("--fail", "a wrong %s", "value")
		case "io":
			err = cfs.E("read", cfs.Corrupt, errors.New("line one\nline two"))
		case "plain":
			err = fmt.Errorf("plain")
		}
		return err
	}}
	leaf.Flags().String("fail", "", "")
	leaf.Flags().String("must", "", "")
	if err := leaf.MarkFlagRequired("must"); err != nil {
		panic(err)
	}
	group.AddCommand(leaf)
	root.AddCommand(group)
	return root
}

func TestExitStatusAndOneLine(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"group leaf --must x", ExitOK, ""},
		{"", ExitUsage, "tool: missing command: one of group"},
		{"nonesuch", ExitUsage, `tool: unknown command "nonesuch": want one of group`},
		{"group", ExitUsage, "tool group: missing command: one of leaf"},
		{"group nonesuch", ExitUsage, `tool group: unknown command "nonesuch": want one of leaf`},
		{"group leaf", ExitUsage, `tool group leaf: required flag(s) "must" not set`},
		{"group leaf --must x --bogus", ExitUsage, "tool group leaf: unknown flag: --bogus"},
		{"group leaf --must x surplus", ExitUsage, `tool group leaf: unknown command "surplus" for "tool group leaf"`},
		{"group leaf --must x --fail usage", ExitUsage, "tool group leaf: --fail: a wrong value"},
		{"group leaf --must x --fail io", ExitFailed, "tool group leaf: read: corrupt data: line one; line two"},
		{"group leaf --must x --fail plain", ExitFailed, "tool group leaf: plain"},
	} {
		root := testTree()
		root.SetArgs(strings.Fields(c.args))
		var stderr bytes.Buffer
		code := Run(context.Background(), root, &stderr)
		got := strings.TrimSuffix(stderr.String(), "\n")
		if code != c.code || got != c.want {
			t.Errorf("%q: exit %d, stderr %q; want %d, %q", c.args, code, got, c.code, c.want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 8 << 30: "8.0 GiB", 1<<40 - 1: "1.0 TiB", 1<<64 - 1: "16.0 EiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestLogLevel(t *testing.T) {
	if _, err := NewLogger(&bytes.Buffer{}, "loud"); cfs.KindOf(err) != cfs.Usage {
		t.Errorf("level loud: %v", err)
	}
	var out bytes.Buffer
	log, err := NewLogger(&out, "warn")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("said")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "said") {
		t.Errorf("log at warn: %q", s)
	}
}
