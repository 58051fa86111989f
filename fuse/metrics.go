package fuse

import (
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// op numbers the requests for metrics.
type op uint8

const (
	opLookup op = iota
	opGetAttr
	opSetAttr
	opStatx
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opSymlink
	opReadlink
	opGetXattr
	opListXattr
	opSetXattr
	opRemoveXattr
	opCreate
	opOpen
	opRead
	opWrite
	opFlush
	opFsync
	opRelease
	opFallocate
	opCopyFileRange
	opLseek
	opOpenDir
	opReadDir
	opReadDirPlus
	opReleaseDir
	opFsyncDir
	opStatfs
	opTmpfile
	opGetLk
	opSetLk
	opSetLkw
	opEnd
)

// opNames are the labels, as linux/fuse.h names the opcodes.
var opNames = [opEnd]string{
	"lookup", "getattr", "setattr", "statx", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "readlink",
	"getxattr", "listxattr", "setxattr", "removexattr", "create", "open", "read", "write", "flush", "fsync", "release",
	"fallocate", "copy_file_range", "lseek", "opendir", "readdir", "readdirplus", "releasedir", "fsyncdir", "statfs", "tmpfile",
	"getlk", "setlk", "setlkw",
}

// Metrics are the counters and histograms of a mount, named claudefs_fuse_*.
type Metrics struct {
	requests [opEnd]prometheus.Counter
	seconds  [opEnd]prometheus.Observer
	errors   *prometheus.CounterVec
	bytes    struct{ read, written prometheus.Counter }
	opens    struct{ kept, dropped prometheus.Counter }
	passed   [passEnd]prometheus.Counter
	open     prometheus.Gauge
	told     [tellEnd]prometheus.Counter
}

// NewMetrics makes the metrics of a mount and registers them with reg; nil
// registers them nowhere. It panics if reg has them already, as MustRegister does.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_fuse_requests_total", Help: "Requests of the kernel, answered."}, []string{"op"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "claudefs_fuse_request_seconds", Help: "Time from reading a request to its answer.",
		// 5 us to 20 s by fours: from an answer out of memory to a cluster that has just lost a node.
		Buckets: prometheus.ExponentialBuckets(5e-6, 4, 12)}, []string{"op"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_fuse_bytes_total", Help: "Bytes read and written through the daemon."}, []string{"direction"})
	opens := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_fuse_opens_total", Help: "Opens of files, by what became of the kernel's pages."}, []string{"pages"})
	passed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_fuse_passthrough_opens_total", Help: "Opens of files with a cache directory, passed through, or why not."}, []string{"how"})
	m := &Metrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claudefs_fuse_errors_total", Help: "Requests answered with an error."}, []string{"op", "errno"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "claudefs_fuse_open_files", Help: "Files that the kernel holds open."}),
	}
	told := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "claudefs_fuse_notifications_total", Help: "Times that the kernel was told to forget something."}, []string{"what"})
	for i, name := range tellNamed {
		m.told[i] = told.WithLabelValues(name)
	}
	for i, name := range opNames {
		m.requests[i] = requests.WithLabelValues(name)
		m.seconds[i] = seconds.WithLabelValues(name)
	}
	m.bytes.read, m.bytes.written = bytes.WithLabelValues("read"), bytes.WithLabelValues("written")
	m.opens.kept, m.opens.dropped = opens.WithLabelValues("kept"), opens.WithLabelValues("dropped")
	for i, name := range passNames {
		m.passed[i] = passed.WithLabelValues(name)
	}
	if reg != nil {
		reg.MustRegister(requests, seconds, bytes, opens, told, passed, m.errors, m.open)
	}
	return m
}

// record counts one answer.
func (m *Metrics) record(o op, took time.Duration, errno syscall.Errno) {
	m.requests[o].Inc()
	m.seconds[o].Observe(took.Seconds())
	if errno != 0 {
		name := unix.ErrnoName(errno)
		if name == "" {
			name = "unknown"
		}
		m.errors.WithLabelValues(opNames[o], name).Inc()
	}
}
