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

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cmd/internal/cli"
	"github.com/claudefs/claudefs/fuse"
	"github.com/claudefs/claudefs/node"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
)

const (
	// defaultCacheTTL bounds how long what one mount sees may be behind another's changes.
	defaultCacheTTL = time.Second
	// closeTimeout bounds the last flush of a daemon that is told to end.
	closeTimeout = time.Minute
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
	foreground bool
	readyFD    int
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
		RunE:  func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.servers, "server", nil, "HOST:PORT of servers, or unix:PATH; one that answers is enough")
	fl.StringVar(&f.clusterID, "cluster-id", "", "refuse any other cluster (default: whatever the server belongs to)")
	fl.DurationVar(&f.cacheTTL, "cache-ttl", defaultCacheTTL, "how long names and attributes may be answered from the cache")
	fl.DurationVar(&f.timeout, "timeout", defaultTimeout, "how long to wait for a server")
	fl.StringVar(&f.metrics, "metrics", "", "HOST:PORT to serve /metrics on (default: nowhere)")
	fl.StringVar(&f.logFile, "log-file", "", "append the daemon's log to this file (default: standard error with --foreground, else nowhere)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.BoolVar(&f.foreground, "foreground", false, "serve the mount from this process instead of a daemon")
	f.identity.add(fl)
	f.identity.addToken(fl)
	fl.IntVar(&f.readyFD, "ready-fd", 0, "where a daemon reports its start")
	// They fail only for a name that is not a flag.
	_ = fl.MarkHidden("ready-fd")
	_ = cmd.MarkFlagRequired("server")
	return cmd
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
	return nil
}

func (f *mountFlags) run(cmd *cobra.Command, point string) (err error) {
	rep := newReporter(f.readyFD)
	defer func() { rep.tell(err) }()
	if err := f.check(); err != nil {
		return err
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
		return startDaemon(cmd.Context(), cmd.Name(), f.daemonArgs(point), f.logFile, f.timeout)
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

// daemonArgs are the arguments by which the daemon does the same in the foreground.
func (f *mountFlags) daemonArgs(point string) []string {
	return []string{
		"--foreground", "--server=" + strings.Join(f.servers, ","), "--cluster-id=" + f.clusterID,
		"--cache-ttl=" + f.cacheTTL.String(), "--timeout=" + f.timeout.String(), "--metrics=" + f.metrics,
		"--log-level=" + f.logLevel, "--log-file=" + f.logFile, "--identity-dir=" + f.identity.dir,
		"--tls=" + f.identity.tls.String(), "--", point,
	}
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
	cl, err := client.New(connect, client.Config{
		Servers: f.servers, ClusterID: f.clusterID, Name: pki.ThisMachine() + ":" + point, CacheTTL: f.cacheTTL,
		Logger: log.With("part", "client"), WireMetrics: wire.NewMetrics(reg), TLS: tlsOf(f.store),
	})
	cancel()
	if err != nil {
		return err
	}
	cl.Stats().Register(reg)
	renewing, endRenewing := context.WithCancel(context.WithoutCancel(ctx))
	defer endRenewing()
	go keepIdentity(renewing, f.store, f.servers, log)
	lock, err := f.serveMount(ctx, cl, point, log, fuse.NewMetrics(reg), rep)
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
func (f *mountFlags) serveMount(ctx context.Context, cl *client.Client, point string, log *slog.Logger, metrics *fuse.Metrics, rep *reporter) (*mountLock, error) {
	srv, err := fuse.Mount(fuse.Config{
		Mountpoint: point, Source: f.servers[0] + ":/", Client: cl, Logger: log.With("part", "fuse"), Metrics: metrics,
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
