package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/fuse"
)

// Options of mount(8), after -o and in the fourth column of fstab, are of four sorts: those of the table here; uid=
// and gid=; every flag of `cfs mount` by its name with _ for - (token=, cache_ttl=), so that a flag is declared once; and
// those that concern others. Anything else is refused by its name.

// plainOptions are those without a value. The last one of a contradiction counts.
var plainOptions = map[string]func(*fuse.Options){
	"ro":          func(o *fuse.Options) { o.ReadOnly = true },
	"rw":          func(o *fuse.Options) { o.ReadOnly = false },
	"noatime":     func(o *fuse.Options) { o.NoAtime = true },
	"atime":       func(o *fuse.Options) { o.NoAtime = false },
	"relatime":    func(o *fuse.Options) { o.NoAtime = false },
	"noexec":      func(o *fuse.Options) { o.NoExec = true },
	"exec":        func(o *fuse.Options) { o.NoExec = false },
	"suid":        func(o *fuse.Options) { o.Suid = true },
	"nosuid":      func(o *fuse.Options) { o.Suid = false },
	"dev":         func(o *fuse.Options) { o.Dev = true },
	"nodev":       func(o *fuse.Options) { o.Dev = false },
	"allow_other": func(o *fuse.Options) { o.AllowOther = true },
}

// otherOptions concern mount(8), systemd and fsck(8), or ask for what is so anyway.
var otherOptions = []string{
	"defaults", "_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
	"nogroup", "async", "diratime", "nodiratime", "default_permissions", "comment", "silent", "loud",
}

// startingFlags are flags that are no options: they say how and where to start.
var startingFlags = []string{"server", "source", "path", "options", "foreground", "ready-fd", "help"}

// apply takes options over, to flags of fl where they are of these. sloppy ignores those that are unknown.
func (f *mountFlags) apply(fl *pflag.FlagSet, text string, sloppy bool) error {
	for _, word := range strings.Split(text, ",") {
		name, value, valued := strings.Cut(word, "=")
		if name == "" && !valued || slices.Contains(otherOptions, name) || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") {
			continue
		}
		known, err := f.applyOne(fl, name, value, valued)
		switch {
		case err != nil:
			return err
		case !known && name == "remount":
			return cli.Usage("option remount", "not possible: unmount, and mount with the other options")
		case !known && !sloppy:
			return cli.Usage("option "+strconv.Quote(name), "unknown")
		}
	}
	return nil
}

// applyOne takes one option over, if it is known.
func (f *mountFlags) applyOne(fl *pflag.FlagSet, name, value string, valued bool) (known bool, err error) {
	if set := plainOptions[name]; set != nil {
		if valued {
			return true, cli.Usage("option "+name, "takes no value")
		}
		set(&f.options)
		f.words = append(f.words, name)
		return true, nil
	}
	if name == "uid" || name == "gid" {
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil || id == 1<<32-1 { // which chown(2) takes for "as it is"
			return true, cli.Usage("option "+name, "%q is not a number of a user or group", value)
		}
		n := uint32(id)
		if name == "uid" {
			f.options.UID = &n
		} else {
			f.options.GID = &n
		}
		f.words = append(f.words, name+"="+value)
		return true, nil
	}
	flag := fl.Lookup(strings.ReplaceAll(name, "_", "-"))
	if flag == nil || strings.Contains(name, "-") || slices.Contains(startingFlags, flag.Name) {
		return false, nil
	}
	if !valued {
		if value = flag.NoOptDefVal; value == "" {
			return true, cli.Usage("option "+name, "wants a value")
		}
	}
	if err := fl.Set(flag.Name, value); err != nil {
		return true, cli.Usage("option "+name, "%q: %v", value, err)
	}
	return true, nil
}
