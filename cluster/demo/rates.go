package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/rawdisk"
)

// rounds is how often each rate is taken; the median counts. Ours and fio's
// alternate, so that a drift of the disk meets both.
const rounds = 3

// seqWrite writes n bytes to a new file, fsyncs and closes it: bytes per second until the fsync returned.
func seqWrite(ctx context.Context, path string, n int64) (float64, error) {
	chunk := make([]byte, ioBytes)
	newPattern(1).Read(chunk)
	return rawdisk.SeqWrite(ctx, path, n, chunk)
}

// creates makes and closes n empty files, one after the other: files per second.
func creates(ctx context.Context, dir string, n int) (float64, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, cfs.E("make "+dir, cfs.KindOf(err), err)
	}
	begun := time.Now()
	for i := range n {
		path := filepath.Join(dir, createName(i))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			err = f.Close()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, cfs.E("create "+path, cfs.KindOf(err), err)
		}
	}
	return perSecond(int64(n), time.Since(begun)), nil
}

func createName(i int) string { return fmt.Sprintf("file-%05d", i) }

// runFio takes one rate of the disk, in bytes a second: direct, 1 MiB, queue depth 8,
// the whole of a file that has been written once in full.
func (t *tools) runFio(ctx context.Context, path, rw string, n int64) (float64, error) {
	res, err := rawdisk.RunFio(ctx, t.fio, rawdisk.Job{Path: path, RW: rw, SizeBytes: n, BlockBytes: ioBytes, Depth: 8})
	return res.BytesPerSecond, err
}

// median is the middle value; 0 for none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// sequentialRates takes the sequential rates of the mount and of the disk in turn.
func (d *demo) sequentialRates(ctx context.Context) error {
	disk := filepath.Join(d.dir, "fio.dat")
	defer os.Remove(disk)
	withFio := d.tools.fio != ""
	if withFio {
		if err := rawdisk.Prewrite(ctx, disk, d.sizes.rateBytes); err != nil {
			return err
		}
	}
	var write, read, diskWrite, diskRead []float64
	for i := range rounds {
		d.out.progress("round %d of %d", i+1, rounds)
		if withFio {
			rate, err := d.tools.runFio(ctx, disk, "write", d.sizes.rateBytes)
			if err != nil {
				d.out.result("fio cannot run here, so there are no ratios: %v", err)
				withFio = false
			} else {
				diskWrite = append(diskWrite, rate)
			}
		}
		path := filepath.Join(d.point, fmt.Sprintf("rate-%d", i))
		rate, err := seqWrite(ctx, path, d.sizes.rateBytes)
		if err != nil {
			return err
		}
		write = append(write, rate)
		if withFio {
			rate, err := d.tools.runFio(ctx, disk, "read", d.sizes.rateBytes)
			if err != nil {
				return err
			}
			diskRead = append(diskRead, rate)
		}
		if err := d.remount(ctx); err != nil {
			return err
		}
		if rate, err = rawdisk.SeqRead(ctx, path); err != nil {
			return err
		}
		read = append(read, rate)
		if err := os.Remove(path); err != nil {
			return cfs.E("remove "+path, cfs.KindOf(err), err)
		}
	}
	d.rates.write, d.rates.read = median(write), median(read)
	d.rates.diskWrite, d.rates.diskRead = median(diskWrite), median(diskRead)
	d.out.result("write %s, cold read %s; this disk by fio: write %s, read %s (medians of %d rounds of %s)",
		megabytes(d.rates.write), megabytes(d.rates.read), diskRate(d.rates.diskWrite), diskRate(d.rates.diskRead), rounds, size(d.sizes.rateBytes))
	return nil
}

func diskRate(rate float64) string {
	if rate == 0 {
		return "not measured"
	}
	return megabytes(rate)
}

// dropFromPageCache makes the next read of a file's range ask the file system.
func dropFromPageCache(f *os.File, off, n int64) {
	unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED) // advice: a refusal costs the probe's coldness alone
}
