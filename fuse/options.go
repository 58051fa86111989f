package fuse

import (
	"context"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
)

// Options are how a mount differs from a plain one of the whole namespace.
type Options struct {
	// Root is the directory that is the root of the mount (FindRoot); 0 for that of the namespace.
	Root cfs.Ino
	// ReadOnly has the kernel refuse every change with EROFS.
	ReadOnly bool
	// NoAtime and NoExec are those of mount(2).
	NoAtime, NoExec bool
	// Suid and Dev let set-user-ID programs and device nodes work, as they do not otherwise. Root alone may.
	Suid, Dev bool
	// AllowOther lets other users in; root's mounts always do.
	AllowOther bool
	// UID and GID, where there are any, are shown as the owner of everything.
	UID, GID *uint32
	// Timeout is how long an operation may wait for the cluster before it fails with EIO; 0: for ever.
	// Waits for locks are not bounded.
	Timeout time.Duration
}

// check refuses what the kernel would drop without a word.
func (o *Options) check() error {
	if os.Geteuid() != 0 && (o.Suid || o.Dev) {
		return cfs.Errorf("options suid and dev", cfs.Permission, "root alone may mount so")
	}
	return nil
}

// flags are those of mount(2).
func (o *Options) flags() (flags uintptr) {
	for _, f := range o.table() {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}

// names are the same as fusermount3 spells them.
func (o *Options) names() (names []string) {
	for _, f := range o.table() {
		if f.on {
			names = append(names, f.name)
		}
	}
	if o.AllowOther {
		names = append(names, "allow_other")
	}
	return names
}

// mountFlag is a property of a mount, to the kernel and to fusermount3.
type mountFlag struct {
	on   bool
	flag uintptr
	name string
}

func (o *Options) table() []mountFlag {
	return []mountFlag{
		{o.ReadOnly, unix.MS_RDONLY, "ro"},
		{o.NoAtime, unix.MS_NOATIME, "noatime"},
		{o.NoExec, unix.MS_NOEXEC, "noexec"},
		{!o.Suid, unix.MS_NOSUID, "nosuid"},
		{!o.Dev, unix.MS_NODEV, "nodev"},
	}
}

// FindRoot is the directory at a path of the namespace, for Options.Root. Symbolic links are not followed.
func FindRoot(ctx context.Context, c *client.Client, name string) (cfs.Ino, error) {
	return findRoot(ctx, c, name)
}

func findRoot(ctx context.Context, names namespace, name string) (cfs.Ino, error) {
	ino, at := cfs.RootIno, "/"
	for _, element := range strings.Split(path.Clean("/"+name), "/") {
		if element == "" {
			continue
		}
		at = path.Join(at, element)
		a, err := names.Lookup(ctx, ino, element)
		switch {
		case err != nil:
			return 0, cfs.E("directory "+at+" of the cluster", cfs.KindOf(err), nil)
		case a.Mode&cfs.ModeType == cfs.ModeSymlink:
			return 0, cfs.Errorf("directory "+at+" of the cluster", cfs.NotDir, "it is a symbolic link, which is not followed")
		case !a.IsDir():
			return 0, cfs.E("directory "+at+" of the cluster", cfs.NotDir, nil)
		}
		ino = a.Ino
	}
	return ino, nil
}

// owners are the owners that a mount shows whatever the cluster has.
type owners struct{ uid, gid *uint32 }

// show makes a the attributes that the kernel gets.
func (o owners) show(uid, gid uint32) (uint32, uint32) {
	if o.uid != nil {
		uid = *o.uid
	}
	if o.gid != nil {
		gid = *o.gid
	}
	return uid, gid
}

// chown is what is left of a change of attributes: to give a file to the owner that is shown does nothing, and
// to any other is not possible, as nobody would see it.
func (o owners) chown(mask cfs.SetMask, want *cfs.Attr) (cfs.SetMask, error) {
	for _, id := range [...]struct {
		bit   cfs.SetMask
		shown *uint32
		want  uint32
	}{{cfs.SetUID, o.uid, want.UID}, {cfs.SetGID, o.gid, want.GID}} {
		if mask&id.bit == 0 || id.shown == nil {
			continue
		}
		if *id.shown != id.want {
			return 0, cfs.Errorf("chown", cfs.Permission, "the mount shows %d as every file's owner", *id.shown)
		}
		mask &^= id.bit
	}
	return mask, nil
}
