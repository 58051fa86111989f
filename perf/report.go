package perf

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Metric is the name of one number that a bench measures, as JSON and targets have it.
type Metric string

// The metrics. Not every row has all of them.
const (
	IOPS           Metric = "iops"             // operations a second
	BytesPerSecond Metric = "bytes_per_second" // of payload
	P50            Metric = "p50_us"           // latency, microseconds
	P99            Metric = "p99_us"
	P999           Metric = "p999_us"
	CPUPerOp       Metric = "cpu_us_per_op" // user and system time, microseconds
	AllocsPerOp    Metric = "allocs_per_op" // of the Go heap, rounded to a hundredth

	PutsPerSync    Metric = "puts_per_sync"      // acknowledged puts for each flush or synced write of the device
	SyncsPerPut    Metric = "syncs_per_put"      // its inverse
	WritesPerPut   Metric = "writes_per_put"     // write operations of the device
	WrittenPerByte Metric = "written_per_byte"   // bytes written to the device for each byte put
	KernelSyncs    Metric = "kernel_syncs_ratio" // flushes that the kernel counted on the disk for each sync of ours
	KernelBytes    Metric = "kernel_bytes_ratio" // bytes that the kernel counted on the disk for each byte of ours

	OpenSeconds    Metric = "open_s"                // until OpenLog returns
	Records        Metric = "records"               // live after it
	OpenReadBytes  Metric = "open_read_bytes"       // read from the device by it
	HeapPerRecord  Metric = "heap_bytes_per_record" // of the Go heap, after a collection
	Amplification  Metric = "write_amplification"   // record bytes written, by puts and by the cleaner, for each byte put
	DeviceWritten  Metric = "device_amplification"  // all bytes written to the device for each byte put
	RecordsPerHead Metric = "records_per_write"     // records that share one write

	CorePerGB     Metric = "core_s_per_gb"     // processor seconds for each 10^9 bytes of data
	Reads         Metric = "reads"             // by the application
	SlowShare     Metric = "slow_share"        // reads of shards that the slow node served for each read
	OccupiedBytes Metric = "occupied_per_byte" // of device segments that hold anything, for each byte of the file
	LiveBytes     Metric = "live_per_byte"     // of live records on devices, for each byte of the file
	SettleSeconds Metric = "settle_s"          // until the devices' figures came to rest
	MovedRate     Metric = "moved_per_second"  // bytes read and written on devices by a rebuild, each second

	ServerCPU    Metric = "server_cpu_us_per_op" // user and system time of all servers, microseconds
	LeaderSyncs  Metric = "leader_syncs_per_op"  // fdatasyncs of the leader for each operation, counted by the kernel
	LeastSyncs   Metric = "least_syncs_per_op"   // those of the voter that has made the fewest
	GapSeconds   Metric = "gap_s"                // the longest time without an answer
	StartSeconds Metric = "start_s"              // from the start of the servers to the first answer
	ServerMemory Metric = "server_bytes"         // the most resident memory that a server has had
	ClientMemory Metric = "client_heap_bytes"    // the most that the client's heap has grown
)

// metricInfo says how a metric is shown.
type metricInfo struct {
	metric Metric
	title  string  // of its column
	format string  // of its cells
	scale  float64 // cells and benchmark lines show value*scale
	unit   string  // in the benchmark format
	bench  float64 // value*bench is in that unit
	better string  // higher or lower, for benchstat; "" for neither
}

// metricTable is in the order of the columns.
var metricTable = []metricInfo{
	{IOPS, "IOPS", "%.0f", 1, "op/s", 1, "higher"},
	{BytesPerSecond, "MB/s", "%.1f", 1e-6, "MB/s", 1e-6, "higher"},
	{P50, "p50 us", "%.1f", 1, "p50-ns", 1e3, "lower"},
	{P99, "p99 us", "%.1f", 1, "p99-ns", 1e3, "lower"},
	{P999, "p99.9 us", "%.1f", 1, "p99.9-ns", 1e3, "lower"},
	{CPUPerOp, "CPU us/op", "%.2f", 1, "cpu-ns/op", 1e3, "lower"},
	{AllocsPerOp, "allocs/op", "%.2f", 1, "allocs/op", 1, "lower"},
	{PutsPerSync, "puts/sync", "%.2f", 1, "", 0, ""},
	{SyncsPerPut, "syncs/put", "%.3f", 1, "syncs/op", 1, "lower"},
	{WritesPerPut, "writes/put", "%.3f", 1, "writes/op", 1, "lower"},
	{WrittenPerByte, "written/byte", "%.3f", 1, "written/B", 1, "lower"},
	{KernelSyncs, "disk flushes/sync", "%.2f", 1, "", 0, ""},
	{KernelBytes, "disk bytes/byte", "%.2f", 1, "", 0, ""},
	{OpenSeconds, "open s", "%.3f", 1, "open-ns", 1e9, "lower"},
	{Records, "records", "%.0f", 1, "records", 1, ""},
	{OpenReadBytes, "read MB", "%.1f", 1e-6, "read-MB", 1e-6, "lower"},
	{HeapPerRecord, "heap B/record", "%.1f", 1, "heap-B/record", 1, "lower"},
	{Amplification, "write amplification", "%.3f", 1, "amplification", 1, "lower"},
	{DeviceWritten, "with headers", "%.3f", 1, "device-amplification", 1, "lower"},
	{RecordsPerHead, "records/write", "%.1f", 1, "records/write", 1, ""},
	{CorePerGB, "core s/GB", "%.3f", 1, "core-ns/GB", 1e9, "lower"},
	{Reads, "reads", "%.0f", 1, "reads", 1, ""},
	{SlowShare, "slow node's share", "%.2f", 1, "", 0, ""},
	{OccupiedBytes, "occupied/byte", "%.2f", 1, "occupied/B", 1, "lower"},
	{LiveBytes, "live/byte", "%.2f", 1, "live/B", 1, "lower"},
	{SettleSeconds, "settle s", "%.1f", 1, "settle-ns", 1e9, "lower"},
	{MovedRate, "moved MB/s", "%.1f", 1e-6, "moved-MB/s", 1e-6, "higher"},
	{ServerCPU, "servers' CPU us/op", "%.1f", 1, "server-cpu-ns/op", 1e3, "lower"},
	{LeaderSyncs, "leader's syncs/op", "%.3f", 1, "leader-syncs/op", 1, "lower"},
	{LeastSyncs, "least voter's syncs/op", "%.3f", 1, "", 0, ""},
	{GapSeconds, "gap s", "%.3f", 1, "gap-ns", 1e9, "lower"},
	{StartSeconds, "start s", "%.3f", 1, "start-ns", 1e9, "lower"},
	{ServerMemory, "server MB", "%.1f", 1e-6, "server-MB", 1e-6, "lower"},
	{ClientMemory, "client heap MB", "%.1f", 1e-6, "client-heap-MB", 1e-6, "lower"},
}

func infoOf(m Metric) *metricInfo {
	for i := range metricTable {
		if metricTable[i].metric == m {
			return &metricTable[i]
		}
	}
	return nil
}

// Values are what one round of a row gave. A metric that was not measured is absent.
type Values map[Metric]float64

// Labels say what a row measured: rw=randread, depth=32, engine=native.
type Labels map[string]string

// labelOrder is the order in which labels are shown.
var labelOrder = []string{"op", "rw", "bs", "depth", "sync", "skew", "records", "state", "engine"}

// has reports whether l has all of want.
func (l Labels) has(want Labels) bool {
	for k, v := range want {
		if l[k] != v {
			return false
		}
	}
	return true
}

// String is the labels as benchmark names have them: rw=randread/depth=32.
func (l Labels) String() string {
	var parts []string
	for _, k := range labelOrder {
		if v, ok := l[k]; ok {
			parts = append(parts, k+"="+v)
		}
	}
	return strings.Join(parts, "/")
}

// Row is one of the things that a bench compares.
type Row struct {
	Labels Labels   `json:"labels"`
	Rounds []Values `json:"rounds"` // in the order in which they ran
	Median Values   `json:"median"`
	// RatioTo names the row that Ratios are taken to; empty for none.
	RatioTo string `json:"ratio_to,omitempty"`
	// Ratios of IOPS and CPU time, or what the bench compares, each the median over the rounds.
	Ratios Values `json:"ratios,omitempty"`

	base    *Row
	compare []Metric // what Ratios are of; nil for IOPS and CPU time
}

// finish takes the medians.
func (r *Row) finish() {
	r.Median = Values{}
	for _, info := range metricTable {
		if v, ok := r.median(info.metric); ok {
			r.Median[info.metric] = v
		}
	}
	if r.base == nil {
		return
	}
	r.RatioTo, r.Ratios = r.base.Labels.String(), Values{}
	compare := r.compare
	if compare == nil {
		compare = []Metric{IOPS, CPUPerOp}
	}
	for _, m := range compare {
		if v, ok := r.ratio(r.base, m); ok {
			r.Ratios[m] = v
		}
	}
}

// median is the middle of a metric's rounds, false when none has it.
func (r *Row) median(m Metric) (float64, bool) {
	var all []float64
	for _, v := range r.Rounds {
		if x, ok := v[m]; ok {
			all = append(all, x)
		}
	}
	return Median(all)
}

// ratio is the median of the ratios of each round to the same round of base.
func (r *Row) ratio(base *Row, m Metric) (float64, bool) {
	var all []float64
	for i := range min(len(r.Rounds), len(base.Rounds)) {
		a, aok := r.Rounds[i][m]
		b, bok := base.Rounds[i][m]
		if aok && bok && b != 0 {
			all = append(all, a/b)
		}
	}
	return Median(all)
}

// Median is the middle value, of an even number the mean of the two in the
// middle; false for none.
func Median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	v = slices.Sorted(slices.Values(v))
	mid := len(v) / 2
	if len(v)%2 == 0 {
		return (v[mid-1] + v[mid]) / 2, true
	}
	return v[mid], true
}

// Machine is where a report was made.
type Machine struct {
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	CPUs   int    `json:"cpus"`
	Fio    string `json:"fio,omitempty"`
}

// thisMachine describes the machine, as far as it can be known.
func thisMachine() Machine {
	m := Machine{Go: runtime.Version(), CPUs: runtime.GOMAXPROCS(0)}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return m
}

// Report is what a bench measured.
type Report struct {
	Bench   string   `json:"bench"`
	Device  string   `json:"device"`
	Machine Machine  `json:"machine"`
	Notes   []string `json:"notes,omitempty"` // what a reader of the numbers must know
	Rows    []*Row   `json:"rows"`
}

func newReport(bench, device string) *Report {
	return &Report{Bench: bench, Device: device, Machine: thisMachine()}
}

// note adds a note once.
func (r *Report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// row adds a row; base is what its ratios are taken to, or nil.
func (r *Report) row(labels Labels, base *Row) *Row {
	row := &Row{Labels: labels, base: base}
	r.Rows = append(r.Rows, row)
	return row
}

// finish takes all medians.
func (r *Report) finish() *Report {
	for _, row := range r.Rows {
		row.finish()
	}
	return r
}

// find is the only row that has the labels; false when it is not exactly one.
func (r *Report) find(want Labels) (*Row, bool) {
	var found *Row
	for _, row := range r.Rows {
		if row.Labels.has(want) {
			if found != nil {
				return nil, false
			}
			found = row
		}
	}
	return found, found != nil
}

// round2 rounds to a hundredth.
func round2(v float64) float64 { return math.Round(v*100) / 100 }
