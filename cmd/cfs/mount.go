package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/fuse"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
)

const (
	// defaultCacheTTL bounds how long the kernel answers from what it knows without asking the daemon.
	defaultCacheTTL = time.Second
	// closeTimeout bounds the last flush of a daemon that is told to end.
	closeTimeout = time.Minute
	// timeoutFlag means more where it is given than by its default.
	timeoutFlag = "timeout"
)

// mountFlags are the values of `cfs mount`.
type mountFlags struct {
	servers    []string
	clusterID  string
	cacheTTL   time.Duration
	timeout    time.Duration
	metrics    string
	logFile    string
	logLevel   string
	syncNames  bool
	foreground bool
	transport  string
	readyFD    int
	source     string // as it is shown; empty: made of servers and path
	path       string // the directory of the cluster that is mounted
	words      []string
	options    fuse.Options // what words say
	cache      cacheFlags
	identity   identityFlags
	store      *pki.Store // nil without certificates
}

// newMountCmd makes `cfs mount`.
func newMountCmd() *cobra.Command {
	f := &mountFlags{}
	cmd := &cobra.Command{
		Use:   "mount MOUNTPOINT --server HOST:9400[,HOST:9400..]",
		Short: "mount the file system; returns when it is usable",
		Args:  cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	f.add(fl)
	options := fl.StringP("options", "o", "", "options as mount(8) takes them: ro,noatime,noexec,suid,dev,allow_other,uid=N,gid=N; flags of this command too, as cache_ttl=1s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := f.apply(fl, *options, false)
		if err != nil {
			newReporter(f.readyFD).tell(err)
			return err
		}
		return f.run(cmd, fl, args[0])
	}
	// It fails only for a name that is not a flag.
	_ = cmd.MarkFlagRequired("server")
	return cmd
}

// add declares the flags. Every one is an option of mount(8) too; see mountoptions.go.
func (f *mountFlags) add(fl *pflag.FlagSet) {
	fl.StringSliceVar(&f.servers, "server", nil, "HOST:PORT of servers, or unix:PATH; one that answers is enough")
	fl.StringVar(&f.clusterID, "cluster-id", "", "refuse any other cluster (default: whatever the server belongs to)")
	fl.DurationVar(&f.cacheTTL, "cache-ttl", defaultCacheTTL, "how long the kernel may answer without asking; 0: never")
	fl.DurationVar(&f.timeout, timeoutFlag, defaultTimeout, "how long to wait for a server; where it is given, operations that wait longer for the cluster fail with EIO (otherwise they wait until it is back)")
	fl.StringVar(&f.path, "path", "/", "mount this directory of the cluster")
	fl.StringVar(&f.source, "source", "", "what mount(8) and df(1) show")
	fl.StringVar(&f.metrics, "metrics", "", "HOST:PORT to serve /metrics on (default: nowhere)")
	fl.StringVar(&f.logFile, "log-file", "", "append the daemon's log to this file (default: standard error with --foreground, else nowhere)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.BoolVar(&f.syncNames, "sync-names", false, "names are durable when the call that makes, moves or removes them returns, without fsync")
	fl.BoolVar(&f.foreground, "foreground", false, "serve the mount from this process instead of a daemon")
	fl.StringVar(&f.transport, "transport", "", "how the kernel's requests come: "+fuse.TransportURing+" (FUSE over io_uring) or "+fuse.TransportDev+" (/dev/fuse) (default: the first that is there)")
	f.cache.add(fl)
	f.identity.add(fl)
	f.identity.addToken(fl)
	fl.IntVar(&f.readyFD, "ready-fd", 0, "where a daemon reports its start")
	// They fail only for a name that is not a flag.
	_ = fl.MarkHidden("ready-fd")
	_ = fl.MarkHidden("source")
}

// check refuses a command line that cannot be meant.
func (f *mountFlags) check() error {
	if len(f.servers) == 0 {
		return cli.Usage("--server", "none given")
	}
	for _, s := range f.servers {
		if err := checkServer(s); err != nil {
			return err
		}
	}
	if f.clusterID != "" {
		if err := node.CheckClusterID(f.clusterID); err != nil {
			return err
		}
	}
	if f.metrics != "" {
		if err := node.CheckAddr("--metrics", f.metrics); err != nil {
			return err
		}
	}
	if f.cacheTTL < 0 {
		return cli.Usage("--cache-ttl", "want a duration that is not negative")
	}
	if f.timeout <= 0 {
		return cli.Usage("--timeout", "want a positive duration")
	}
	if !strings.HasPrefix(f.path, "/") {
		return cli.Usage("--path", "%q does not begin with /", f.path)
	}
	if fuse.CheckTransport(f.transport) != nil {
		return cli.Usage("--transport", "want "+fuse.TransportURing+" or "+fuse.TransportDev)
	}
	return f.cache.check()
}

// run does what the flags, which are in fl, say.
func (f *mountFlags) run(cmd *cobra.Command, fl *pflag.FlagSet, point string) (err error) {
	rep := newReporter(f.readyFD)
	defer func() { rep.tell(err) }()
	if err := f.check(); err != nil {
		return err
	}
	if fl.Changed(timeoutFlag) {
		f.options.Timeout = f.timeout
	}
	if f.source == "" {
		f.source = strings.Join(f.servers, ",") + ":" + f.path
	}
	if point, err = mountpoint(point); err != nil {
		return err
	}
	if f.logFile != "" {
		if f.logFile, err = filepath.Abs(f.logFile); err != nil {
			return cfs.E("--log-file", cfs.KindOf(err), err)
		}
	}
	if err := f.identify(cmd); err != nil {
		return err
	}
	if !f.foreground {
		if _, err := cli.NewLogger(cmd.ErrOrStderr(), f.logLevel); err != nil {
			return err
		}
		return startDaemon(cmd.Context(), "mount", f.daemonArgs(fl, point), f.logFile, f.timeout)
	}
	out := cmd.ErrOrStderr()
	if f.logFile != "" && f.readyFD == 0 {
		file, err := os.OpenFile(f.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return cfs.E("--log-file", cfs.KindOf(err), err)
		}
		defer file.Close()
		out = file
	}
	log, err := cli.NewLogger(out, f.logLevel)
	if err != nil {
		return err
	}
	return f.serve(cmd.Context(), point, log, rep)
}

// identify finds this machine's certificate, or gets it: before there is a daemon, so that the token
// is not one of its arguments.
func (f *mountFlags) identify(cmd *cobra.Command) error {
	log, err := cli.NewLogger(cmd.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	if f.identity.dir != "" {
		if f.identity.dir, err = filepath.Abs(f.identity.dir); err != nil {
			return cfs.E("--identity-dir", cfs.KindOf(err), err)
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	if f.store, err = f.identity.open(ctx, f.servers, f.clusterID, log); err != nil {
		return err
	}
	if f.identity.tls = f.store != nil; f.identity.tls {
		f.identity.dir = f.store.Dir()
	}
	return nil
}

// daemonArgs are the arguments by which the daemon does the same in the foreground: every flag that is not as it
// would be by itself, but for the token, which everybody can read there.
func (f *mountFlags) daemonArgs(fl *pflag.FlagSet, point string) []string {
	args := []string{"--foreground", "--options=" + strings.Join(f.words, ",")}
	fl.VisitAll(func(flag *pflag.Flag) {
		switch value := flag.Value.String(); {
		case flag.Name == "token" || flag.Name == "options" || flag.Name == "ready-fd" || flag.Name == "foreground":
		case flag.Name == "server":
			args = append(args, "--server="+strings.Join(f.servers, ","))
		case flag.Changed || value != flag.DefValue:
			args = append(args, "--"+flag.Name+"="+value)
		}
	})
	return append(args, "--", point)
}

// mountpoint is the absolute path of the directory to mount on. What may be
// mounted there already is left for fuse.Mount to judge.
func mountpoint(path string) (string, error) {
	op := "mount " + path
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", cfs.E(op, cfs.KindOf(err), err)
	}
	fi, err := os.Stat(abs)
	switch {
	case errors.Is(err, syscall.ENOTCONN): // of a daemon that has died
	case err != nil:
		return "", cfs.E(op, cfs.KindOf(err), errors.Unwrap(err))
	case !fi.IsDir():
		return "", cfs.E(op, cfs.NotDir, nil)
	}
	return abs, nil
}

// serve is the life of a mount: connect, mount, serve until it is unmounted or
// ctx ends, then write everything back.
func (f *mountFlags) serve(ctx context.Context, point string, log *slog.Logger, rep *reporter) error {
	reg := prometheus.NewRegistry()
	stop, err := serveMetrics(f.metrics, reg, log)
	if err != nil {
		return err
	}
	defer stop()
	connect, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	cl, err := client.New(connect, client.Config{
		Servers: f.servers, ClusterID: f.clusterID, Name: pki.ThisMachine() + ":" + point, CacheTTL: f.cacheTTL,
		NoAtime: f.options.NoAtime, WriteBehind: !f.syncNames,
		Logger: log.With("part", "client"), WireMetrics: wire.NewMetrics(reg), TLS: tlsOf(f.store),
	})
	if err != nil {
		return err
	}
	cl.Stats().Register(reg)
	renewing, endRenewing := context.WithCancel(context.WithoutCancel(ctx))
	defer endRenewing()
	go keepIdentity(renewing, f.store, f.servers, log)
	var lock *mountLock
	if f.options.Root, err = fuse.FindRoot(connect, cl, f.path); err == nil {
		lock, err = f.serveMount(ctx, cl, point, log, reg, rep)
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if flushErr := cl.Close(closing); flushErr != nil {
		err = errors.Join(err, cfs.Errorf("the last flush", cfs.KindOf(flushErr), "data may be lost: %w", flushErr))
	}
	if lock != nil {
		lock.release(err)
	}
	return err
}

// serveMount serves the mount until it is gone. The lock that it returns, nil
// where there was no mount, is to be released when everything is written back.
func (f *mountFlags) serveMount(ctx context.Context, cl *client.Client, point string, log *slog.Logger, reg *prometheus.Registry, rep *reporter) (*mountLock, error) {
	cache, err := f.cache.open(cl.ClusterID(), log, reg)
	if err != nil {
		return nil, err
	}
	if cache != nil {
		defer cache.Close()
	}
	srv, err := fuse.Mount(fuse.Config{
		Mountpoint: point, Source: f.source, Options: f.options, Client: cl, Cache: cache, Transport: f.transport,
		Logger: log.With("part", "fuse"), Metrics: fuse.NewMetrics(reg),
	})
	if err != nil {
		return nil, err
	}
	lock, err := lockMount(srv.Mountpoint())
	if err != nil {
		return nil, errors.Join(err, srv.Unmount())
	}
	log.Info("mounted", "mountpoint", srv.Mountpoint(), "cluster", cl.ClusterID())
	rep.tell(nil)
	select {
	case <-srv.Done():
		return lock, nil
	case <-srv.Departed():
		// Who unmounted waits for what was written, not for those who still use it.
		flushing, cancel := context.WithTimeout(ctx, closeTimeout)
		lock.release(cl.Flush(flushing))
		cancel()
		lock = nil
	case <-ctx.Done():
	}
	select {
	case <-srv.Done():
	case <-ctx.Done():
		log.Info("stopping", "mountpoint", srv.Mountpoint())
		err = srv.Unmount()
	}
	return lock, err
}

// lockMount holds the lock of the mount at point.
func lockMount(point string) (*mountLock, error) {
	dev, err := mountDev(point)
	if err != nil {
		return nil, err
	}
	return holdMountLock(dev)
}
