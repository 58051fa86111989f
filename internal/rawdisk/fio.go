package rawdisk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os/exec"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// Job is one job of fio.
type Job struct {
	Path        string
	RW          string // read, write, randread or randwrite
	OffsetBytes int64  // where the range begins
	SizeBytes   int64  // of the range
	BlockBytes  int
	Depth       int
	Runtime     time.Duration // 0: the range once; otherwise the range again and again
	Sync        bool          // each write is durable before it is answered (O_DSYNC)
	Buffered    bool          // through the page cache
	Seed        uint64        // of the random offsets; 0 for fio's own
}

// Result is what fio measured.
type Result struct {
	Version        string
	Ops            int64
	OpsPerSecond   float64
	BytesPerSecond float64
	CPU            time.Duration // user and system time of the job
	// Percentiles of the latency, from submission to completion.
	P50, P99, P999 time.Duration
}

// FindFio looks for fio on the PATH. NotFound says where to get it.
func FindFio() (string, error) {
	path, err := exec.LookPath("fio")
	if err != nil {
		return "", cfs.Errorf("look for fio", cfs.NotFound, "it is not installed (apt-get install fio)")
	}
	return path, nil
}

// Args is fio's command line, without the program.
func (j *Job) Args() []string {
	args := []string{
		"--name=" + j.RW, "--filename=" + strings.ReplaceAll(j.Path, ":", `\:`), "--rw=" + j.RW,
		fmt.Sprintf("--offset=%d", j.OffsetBytes), fmt.Sprintf("--size=%d", j.SizeBytes),
		fmt.Sprintf("--bs=%d", j.BlockBytes), fmt.Sprintf("--iodepth=%d", j.Depth),
		"--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1",
		// Offsets are drawn without a map of those that were drawn before, as our engines do.
		"--norandommap=1", "--fallocate=none", "--overwrite=1",
		"--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9", "--output-format=json",
	}
	if !j.Buffered {
		args = append(args, "--direct=1")
	}
	if j.Sync {
		args = append(args, "--sync=dsync")
	}
	if j.Seed != 0 {
		args = append(args, fmt.Sprintf("--randseed=%d", j.Seed))
	}
	if j.Runtime > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", j.Runtime.Milliseconds()))
	}
	return args
}

// RunFio runs one job with the program at fio. IO when fio fails, with what it
// said; Corrupt when its report makes no sense.
func RunFio(ctx context.Context, fio string, j Job) (Result, error) {
	op := fmt.Sprintf("fio %s on %s", j.RW, j.Path)
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, fio, j.Args()...)
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if ctx.Err() != nil {
		return Result{}, cfs.E(op, cfs.Canceled, context.Cause(ctx))
	}
	text := bytes.TrimSpace(said.Bytes())
	if err != nil {
		if len(text) == 0 {
			text = bytes.TrimSpace(out.Bytes())
		}
		return Result{}, cfs.Errorf(op, cfs.IO, "%w: %s", err, text)
	}
	res, err := Parse(out.Bytes(), j.RW)
	if err != nil && len(text) > 0 {
		err = fmt.Errorf("%w (fio said: %s)", err, text)
	}
	if err != nil {
		return Result{}, cfs.E(op, cfs.KindOf(err), err)
	}
	return res, nil
}

// report is the part of fio's document that is read.
type report struct {
	Version string `json:"fio version"`
	Jobs    []struct {
		Error     int     `json:"error"`
		UserCPU   float64 `json:"usr_cpu"`     // percent of the run time
		SystemCPU float64 `json:"sys_cpu"`     // percent of the run time
		RuntimeMS float64 `json:"job_runtime"` // milliseconds
		Read      side    `json:"read"`
		Write     side    `json:"write"`
	} `json:"jobs"`
}

type side struct {
	Ops            int64   `json:"total_ios"`
	OpsPerSecond   float64 `json:"iops"`
	BytesPerSecond float64 `json:"bw_bytes"`
	Latency        struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

// Parse reads fio's JSON report of a single job that read or wrote as rw says.
// Corrupt when it is no such report.
func Parse(out []byte, rw string) (Result, error) {
	// Notes come before the document.
	at := bytes.IndexByte(out, '{')
	var r report
	if err := json.Unmarshal(out[max(0, at):], &r); err != nil {
		return Result{}, cfs.Errorf("read fio's report", cfs.Corrupt, "%w", err)
	}
	if len(r.Jobs) != 1 {
		return Result{}, cfs.Errorf("read fio's report", cfs.Corrupt, "it has %d jobs, want 1", len(r.Jobs))
	}
	job := &r.Jobs[0]
	if job.Error != 0 {
		return Result{}, cfs.Errorf("read fio's report", cfs.IO, "the job failed with errno %d", job.Error)
	}
	s := &job.Read
	if strings.HasSuffix(rw, "write") {
		s = &job.Write
	}
	res := Result{Version: r.Version, Ops: s.Ops, OpsPerSecond: s.OpsPerSecond, BytesPerSecond: s.BytesPerSecond}
	cpuNS := (job.UserCPU + job.SystemCPU) / 100 * job.RuntimeMS * 1e6
	for _, v := range []struct {
		name string
		ns   float64
		into *time.Duration
	}{
		{"usr_cpu, sys_cpu, job_runtime", cpuNS, &res.CPU},
		{"lat_ns 50", s.Latency.Percentile["50.000000"], &res.P50},
		{"lat_ns 99", s.Latency.Percentile["99.000000"], &res.P99},
		{"lat_ns 99.9", s.Latency.Percentile["99.900000"], &res.P999},
	} {
		if !(v.ns >= 0 && v.ns < math.MaxInt64/2) {
			return Result{}, cfs.Errorf("read fio's report", cfs.Corrupt, "%s gives %g ns", v.name, v.ns)
		}
		*v.into = time.Duration(v.ns)
	}
	if res.Ops <= 0 || !(res.BytesPerSecond > 0) || !(res.OpsPerSecond > 0) {
		return Result{}, cfs.Errorf("read fio's report", cfs.Corrupt, "it names no rate of %s", rw)
	}
	return res, nil
}
