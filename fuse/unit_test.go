package fuse

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/claudefs/claudefs/cfs"
)

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("waiting: %w", context.Canceled), syscall.EINTR},
		{cfs.E("call", cfs.Canceled, context.Canceled), syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{cfs.E("x", cfs.NoSpace, nil), syscall.ENOSPC},
		{gone(cfs.E("x", cfs.NotFound, nil)), syscall.ESTALE},
		{gone(cfs.NoAttr), syscall.ENODATA},
		{gone(nil), 0},
		{syscall.ENXIO, syscall.ENXIO},
		{errors.New("anything"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, ns := range []int64{0, 1, -1, 999999999, -999999999, 1e9, -1e9, 1700000000123456789, -1700000000123456789} {
		sec, nsec := splitNS(ns)
		if nsec >= 1e9 || joinNS(sec, nsec) != ns {
			t.Errorf("%d became %d s %d ns, and %d again", ns, int64(sec), nsec, joinNS(sec, nsec))
		}
	}
	if got := joinNS(1<<62, 0); got < math.MaxInt64-2e9 {
		t.Errorf("the far future became %d", got)
	}
	if got := joinNS(^uint64(1<<62), 5); got > -math.MaxInt64+4e9 {
		t.Errorf("the far past became %d", got)
	}
}

func TestSetAttrMask(t *testing.T) {
	for _, c := range []struct {
		valid uint32
		want  cfs.SetMask
	}{
		{0, 0},
		{gofuse.FATTR_FH | gofuse.FATTR_LOCKOWNER, 0},
		{gofuse.FATTR_MODE, cfs.SetMode},
		{gofuse.FATTR_UID | gofuse.FATTR_GID, cfs.SetUID | cfs.SetGID},
		{gofuse.FATTR_SIZE | gofuse.FATTR_FH | gofuse.FATTR_KILL_SUIDGID, cfs.SetSize | cfs.SetKillPriv},
		{gofuse.FATTR_ATIME | gofuse.FATTR_MTIME, cfs.SetAtime | cfs.SetMtime},
		{gofuse.FATTR_ATIME | gofuse.FATTR_ATIME_NOW | gofuse.FATTR_MTIME | gofuse.FATTR_MTIME_NOW, cfs.SetAtimeNow | cfs.SetMtimeNow},
		{gofuse.FATTR_CTIME, cfs.SetCtime},
	} {
		in := &gofuse.SetAttrIn{}
		in.Valid, in.Mode = c.valid, cfs.ModeRegular|0o4755
		if got, a := setAttrMask(in); got != c.want || a.Mode != 0o4755 {
			t.Errorf("valid %#x: mask %#x mode %o, want %#x", c.valid, got, a.Mode, c.want)
		}
	}
}

func TestPrivileged(t *testing.T) {
	for mode, want := range map[uint32]bool{0o777: false, 0o4000: true, 0o2000: false, 0o2010: true, 0o2767: false, 0o1777: false} {
		if privileged(mode) != want {
			t.Errorf("%o: %v", mode, !want)
		}
	}
}

func TestKillPending(t *testing.T) {
	for status, want := range map[string]bool{
		"": false,
		"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigCgt:\tfffffffd7fc1feff\n": false,
		"SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n":                                      true,
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n":                                      true,
		"SigPnd:\tnonsense\nShdPnd:\n":                                                                false,
	} {
		if killPending([]byte(status)) != want {
			t.Errorf("%q: %v", status, !want)
		}
	}
}

func TestSignalPending(t *testing.T) {
	for status, want := range map[string]bool{
		"": false,
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000000\n": true,
		"SigPnd:\t0000000000004000\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000004000\n": false,
		"SigPnd:\tnonsense\nShdPnd:\n": false,
	} {
		if signalPending([]byte(status)) != want {
			t.Errorf("%q: %v", status, !want)
		}
	}
}

func FuzzKillPending(f *testing.F) {
	f.Add([]byte("SigPnd:\t0000000000000100\n"))
	f.Add([]byte("SigPnd:\nShdPnd:\t"))
	f.Fuzz(func(_ *testing.T, status []byte) { killPending(status); signalPending(status) })
}

func TestHandles(t *testing.T) {
	var h handles[string]
	a, err := h.add("a")
	check(t, err)
	b, err := h.add("b")
	check(t, err)
	if v, ok := h.get(a); v != "a" || !ok || a == b || a == 0 {
		t.Errorf("handle %d is %q (%v)", a, v, ok)
	}
	if v, ok := h.remove(a); v != "a" || !ok {
		t.Errorf("removed %q (%v)", v, ok)
	}
	if _, ok := h.remove(a); ok {
		t.Error("removed twice")
	}
	h.count.Store(maxHandles)
	if _, err := h.add("c"); !errors.Is(err, cfs.Overloaded) {
		t.Errorf("one too many: %v", err)
	}
	h.count.Store(1)
	if all := h.drain(); len(all) != 1 || all[0] != "b" || h.count.Load() != 0 {
		t.Errorf("drained %v, %d left", all, h.count.Load())
	}
}

func TestInoTableIsBounded(t *testing.T) {
	var table inoTable
	for i := range cfs.Ino(2 * maxInoTable) {
		table.swap(i, 1)
	}
	n := 0
	for i := range table.shard {
		n += len(table.shard[i].value)
	}
	if n != maxInoTable {
		t.Errorf("%d inodes remembered", n)
	}
	if old, known := table.swap(2*maxInoTable-1, 7); !known || old != 1 {
		t.Errorf("the last one is %d (%v)", old, known)
	}
	table.forget(2*maxInoTable - 1)
	if _, known := table.get(2*maxInoTable - 1); known {
		t.Error("forgotten and still known")
	}
}

func TestHotFunctionsDoNotAllocate(t *testing.T) {
	fs := newFileSystem(newMemFS().backend(), testLogger(t), NewMetrics(nil))
	fh, err := fs.files.add(&openFile{})
	check(t, err)
	a := cfs.Attr{Ino: 5, Mode: cfs.ModeRegular, MtimeNS: -5}
	var entry gofuse.EntryOut
	fs.opened.swap(5, 1)
	for name, f := range map[string]func(){
		"fillEntry":      func() { fs.fillEntry(&entry, 1, "name", &a) },
		"handle":         func() { fs.handle(fh) },
		"inoTable.swap":  func() { fs.opened.swap(5, 1) },
		"metrics.record": func() { fs.metrics.record(opRead, 1000, 0) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	// A request is one allocation: the context that the client is given.
	h := &gofuse.InHeader{}
	if n := testing.AllocsPerRun(100, func() { fs.begin(opRead, nil, h).end(nil) }); n > 1 {
		t.Errorf("a request allocates %v times", n)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.record(opLookup, 1000, 0)
	m.record(opLookup, 1000, syscall.ENOENT)
	m.open.Inc()
	families, err := reg.Gather()
	check(t, err)
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			key := f.GetName()
			for _, l := range s.GetLabel() {
				key += "," + l.GetValue()
			}
			got[key] = s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	for key, want := range map[string]float64{
		"claudefs_fuse_requests_total,lookup":      2,
		"claudefs_fuse_requests_total,write":       0,
		"claudefs_fuse_request_seconds,lookup":     2,
		"claudefs_fuse_errors_total,ENOENT,lookup": 1,
		"claudefs_fuse_bytes_total,read":           0,
		"claudefs_fuse_opens_total,kept":           0,
		"claudefs_fuse_open_files":                 1,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", key, v, ok, want)
		}
	}
	for i, name := range opNames {
		if name == "" {
			t.Errorf("request %d has no name", i)
		}
	}
}

// TestContextsOfARequest end with it, leave nothing behind, and have no goroutine each.
func TestContextsOfARequest(t *testing.T) {
	fs := &fileSystem{stop: make(chan struct{})}
	r := fs.begin(opRead, nil, &gofuse.InHeader{})
	var all []context.Context
	for i := range 100 {
		ctx, cancel := context.WithCancel(r)
		if i%2 == 0 {
			cancel()
			continue
		}
		defer cancel()
		all = append(all, ctx)
	}
	if len(r.after) != len(all) {
		t.Errorf("%d contexts are known, of %d", len(r.after), len(all))
	}
	close(fs.stop)
	for _, ctx := range all {
		<-ctx.Done()
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Error(ctx.Err())
		}
	}
	ctx, cancel := context.WithCancel(r)
	defer cancel()
	<-ctx.Done()
	if len(r.after) != 0 {
		t.Errorf("%d contexts are left", len(r.after))
	}
}
