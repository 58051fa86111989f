package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// probeBytes is what the probes write and read in one operation.
	probeBytes = 64 << 10
	// probeFiles is how many files of the writing probe exist at a time.
	probeFiles = 16
	// probeEnd bounds the wait for the probes' last operations.
	probeEnd = 60 * time.Second
)

// probe works on the mount without a pause and times every operation: one
// goroutine creates, writes, fsyncs, reads and removes small files, another reads
// a big one at random.
type probe struct {
	dir     string
	bigFile string
	stop    chan struct{}
	done    sync.WaitGroup

	mu      sync.Mutex
	counts  int
	longest time.Duration
	which   string
	running map[string]time.Time // begun and not ended
	failed  error
}

func startProbe(dir, bigFile string, bigBytes int64) (*probe, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, cfs.E("make "+dir, cfs.KindOf(err), err)
	}
	p := &probe{dir: dir, bigFile: bigFile, stop: make(chan struct{}), running: map[string]time.Time{}}
	p.done.Go(func() { p.loop(p.smallFiles) })
	if bigBytes >= probeBytes {
		p.done.Go(func() { p.loop(func(int) error { return p.randomRead(bigBytes) }) })
	}
	return p, nil
}

// loop calls work until the probe is stopped or it fails.
func (p *probe) loop(work func(i int) error) {
	for i := 0; ; i++ {
		select {
		case <-p.stop:
			return
		default:
		}
		if err := work(i); err != nil {
			p.mu.Lock()
			if p.failed == nil {
				p.failed = err
			}
			p.mu.Unlock()
			return
		}
	}
}

// timed runs one operation.
func (p *probe) timed(name string, op func() error) error {
	begun := time.Now()
	p.mu.Lock()
	p.running[name] = begun
	p.mu.Unlock()
	err := op()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, name)
	p.counts++
	if took := time.Since(begun); took > p.longest {
		p.longest, p.which = took, name
	}
	if err != nil {
		return cfs.E("probe: "+name, cfs.KindOf(err), err)
	}
	return nil
}

// smallFiles is one turn of the writing probe.
func (p *probe) smallFiles(i int) error {
	path := filepath.Join(p.dir, fmt.Sprintf("probe-%d", i%probeFiles))
	var f *os.File
	buf := make([]byte, probeBytes)
	newPattern(uint64(i)).Read(buf)
	got := make([]byte, probeBytes)
	steps := []struct {
		name string
		op   func() error
	}{
		{"create", func() (err error) { f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644); return }},
		{"write", func() error { _, err := f.Write(buf); return err }},
		{"fsync", func() error { return f.Sync() }},
		{"close", func() error { return f.Close() }},
		{"stat", func() error { _, err := os.Stat(path); return err }},
		{"open", func() (err error) { f, err = os.Open(path); return }},
		{"read", func() error { dropFromPageCache(f, 0, probeBytes); _, err := f.ReadAt(got, 0); return err }},
		{"close after read", func() error { return f.Close() }},
		{"unlink", func() error { return os.Remove(path) }},
	}
	for _, s := range steps {
		if err := p.timed(s.name, s.op); err != nil {
			return err
		}
	}
	if !slices.Equal(buf, got) {
		return cfs.Errorf("probe: read "+path, cfs.Corrupt, "other bytes than were written")
	}
	return nil
}

// randomRead is one turn of the reading probe.
func (p *probe) randomRead(bigBytes int64) error {
	var f *os.File
	if err := p.timed("open the big file", func() (err error) { f, err = os.Open(p.bigFile); return }); err != nil {
		return err
	}
	defer f.Close()
	off := rand.Int64N(bigBytes-probeBytes+1) &^ (cfs.BlockSize - 1)
	buf := make([]byte, probeBytes)
	return p.timed("random read", func() error {
		dropFromPageCache(f, off, probeBytes)
		_, err := f.ReadAt(buf, off)
		return err
	})
}

// mark makes only operations count that end after now.
func (p *probe) mark() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.longest, p.which, p.counts = 0, "", 0
}

// end stops the probes and removes their files: the longest operation since mark, which it was and how many there were.
func (p *probe) end(ctx context.Context) (longest time.Duration, which string, ops int, err error) {
	close(p.stop)
	ended := make(chan struct{})
	go func() {
		p.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return 0, "", 0, cfs.E("probe", cfs.Canceled, ctx.Err())
	case <-time.After(probeEnd):
		p.mu.Lock()
		defer p.mu.Unlock()
		for name, begun := range p.running {
			return 0, "", 0, cfs.Errorf("probe: "+name, cfs.Timeout, "it has not ended after %s", seconds(time.Since(begun)))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return 0, "", 0, p.failed
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return 0, "", 0, cfs.E("remove "+p.dir, cfs.KindOf(err), err)
	}
	return p.longest, p.which, p.counts, nil
}
