package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/cmd/internal/mountspec"
	"github.com/claudefs/claudefs/fuse"
)

// mount(8) and umount(8) leave file systems of a type to helpers: /sbin/mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-o
// OPTIONS] and /sbin/umount.TYPE MOUNTPOINT [-flnrv]. This program is both when it is called so.
const (
	mountHelper  = "mount.fuse.cfs"
	umountHelper = "umount.fuse.cfs"
)

// Exit statuses of mount(8). It has others, for what cannot happen here.
const (
	helperUsage  = 1
	helperFailed = 32
)

// helperStatus is the status of a helper that would have ended with status of ours.
func helperStatus(status int) int {
	switch status {
	case cli.ExitOK:
		return 0
	case cli.ExitUsage:
		return helperUsage
	}
	return helperFailed
}

// newHelper is the command of a helper, if that is what this program was started as.
func newHelper(arg0 string) *cobra.Command {
	switch filepath.Base(arg0) {
	case mountHelper:
		return newMountHelper()
	case umountHelper:
		return newUmountHelper()
	}
	return nil
}

// newMountHelper mounts a source.
func newMountHelper() *cobra.Command {
	f := &mountFlags{}
	flags := pflag.NewFlagSet(mountHelper, pflag.ContinueOnError)
	f.add(flags)
	cmd := &cobra.Command{Use: mountHelper + " HOST:9400[,HOST:9400..]:/[PATH] MOUNTPOINT [-o OPTIONS]", Args: cobra.ExactArgs(2)}
	fl := cmd.Flags()
	options := fl.StringP("options", "o", "", "options, separated by commas")
	sloppy := fl.BoolP("sloppy", "s", false, "ignore options that are unknown")
	fake := fl.BoolP("fake", "f", false, "only look at the arguments")
	addIgnored(fl, "")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		servers, path, err := mountspec.ParseSource(args[0])
		if err != nil {
			return err
		}
		// mount(8) tells of nosuid and nodev, and not of their opposites: these are what is so by default.
		if os.Geteuid() == 0 {
			*options = "suid,dev," + *options
		}
		if err := f.apply(flags, *options, *sloppy); err != nil {
			return err
		}
		f.servers, f.path, f.source = servers, path, args[0]
		if *fake {
			return f.check()
		}
		return f.run(cmd, flags, args[1])
	}
	return cmd
}

// newUmountHelper unmounts and, unlike umount(2), waits until everything is written.
func newUmountHelper() *cobra.Command {
	cmd := &cobra.Command{Use: umountHelper + " MOUNTPOINT", Args: cobra.ExactArgs(1)}
	fl := cmd.Flags()
	lazy := fl.BoolP("lazy", "l", false, "detach it though it is in use, and do not wait")
	addIgnored(fl, "fr")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *lazy {
			return fuse.Unmount(args[0], true)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), defaultUmountTimeout)
		defer cancel()
		return umount(ctx, args[0])
	}
	return cmd
}

// addIgnored declares flags that mount(8) and umount(8) pass on and that say nothing here; letters are further ones
// without a value.
func addIgnored(fl *pflag.FlagSet, letters string) {
	for _, letter := range "nv" + letters {
		fl.BoolP("ignored-"+string(letter), string(letter), false, "ignored")
	}
	fl.StringP("type", "t", "", "ignored")
}
