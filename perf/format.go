package perf

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
)

// Table is the report as rows of cells, titles first: the labels that differ
// between rows or say what was measured, then every metric that a row has, then
// the ratios.
func (r *Report) Table() [][]string {
	var labels []string
	for _, k := range labelOrder {
		for _, row := range r.Rows {
			if _, ok := row.Labels[k]; ok {
				labels = append(labels, k)
				break
			}
		}
	}
	var metrics []metricInfo
	for _, info := range metricTable {
		for _, row := range r.Rows {
			if _, ok := row.Median[info.metric]; ok {
				metrics = append(metrics, info)
				break
			}
		}
	}
	ratios, others := r.ratioColumns()
	titles := append([]string{}, labels...)
	for _, m := range metrics {
		titles = append(titles, m.title)
	}
	for _, c := range ratios {
		titles = append(titles, c.title)
	}
	if others {
		titles = append(titles, "ratio to")
	}
	table := [][]string{titles}
	for _, row := range r.Rows {
		var cells []string
		for _, k := range labels {
			cells = append(cells, orDash(row.Labels[k]))
		}
		for _, m := range metrics {
			cells = append(cells, cell(row.Median, m.metric, m.format, m.scale))
		}
		for _, c := range ratios {
			cells = append(cells, cell(row.Ratios, c.metric, "%.2f", 1))
		}
		if others {
			cells = append(cells, orDash(row.RatioTo))
		}
		table = append(table, cells)
	}
	return table
}

// ratioColumn is a column of ratios.
type ratioColumn struct {
	metric Metric
	title  string
}

// ratioTable is in the order of the columns.
var ratioTable = []ratioColumn{{IOPS, "IOPS"}, {BytesPerSecond, "MB/s"}, {P99, "p99"}, {CPUPerOp, "CPU"}}

// ratioColumns are those that a row has; others says that a row's ratios are to something
// else than fio.
func (r *Report) ratioColumns() (columns []ratioColumn, others bool) {
	for _, row := range r.Rows {
		others = others || row.base != nil && row.base.Labels["engine"] != EngineFio
	}
	for _, c := range ratioTable {
		for _, row := range r.Rows {
			if _, ok := row.Ratios[c.metric]; !ok {
				continue
			}
			if others {
				c.title += " ratio"
			} else {
				c.title += "/fio"
			}
			columns = append(columns, c)
			break
		}
	}
	return columns, others
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// cell is a value as a table shows it.
func cell(v Values, m Metric, format string, scale float64) string {
	x, ok := v[m]
	if !ok {
		return "-"
	}
	return fmt.Sprintf(format, x*scale)
}

// WriteBench writes the report in Go's benchmark format, a line for each round
// of each row, with the units' metadata, as benchstat reads it:
//
//	benchstat -col /engine file
func (r *Report) WriteBench(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: %s\ngoarch: %s\npkg: github.com/claudefs/claudefs/perf\n", runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(&b, "device: %s\nkernel: %s\n", oneWord(r.Device), oneWord(r.Machine.Kernel))
	if r.Machine.Fio != "" {
		fmt.Fprintf(&b, "fio: %s\n", oneWord(r.Machine.Fio))
	}
	for _, info := range metricTable {
		if info.unit != "" && info.better != "" {
			fmt.Fprintf(&b, "Unit %s better=%s\n", info.unit, info.better)
		}
	}
	b.WriteByte('\n')
	for _, row := range r.Rows {
		name := fmt.Sprintf("Benchmark%s/%s-%d", title(r.Bench), row.Labels, r.Machine.CPUs)
		for _, v := range row.Rounds {
			b.WriteString(benchLine(name, v))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// benchLine is one result. Its iteration count is 1: a round is what is repeated.
func benchLine(name string, v Values) string {
	var b strings.Builder
	b.WriteString(name + " 1")
	if rate := v[IOPS]; rate > 0 {
		fmt.Fprintf(&b, " %s ns/op", number(1e9/rate))
	}
	for _, info := range metricTable {
		if x, ok := v[info.metric]; ok && info.unit != "" {
			fmt.Fprintf(&b, " %s %s", number(x*info.bench), info.unit)
		}
	}
	b.WriteByte('\n')
	return b.String()
}

// number is a value to a ten-thousandth.
func number(v float64) string { return strconv.FormatFloat(math.Round(v*1e4)/1e4, 'f', -1, 64) }

// oneWord keeps a value of the format on its line.
func oneWord(s string) string { return strings.Join(strings.Fields(s), " ") }

// title makes a bench's name a benchmark's: IO, Log.
func title(s string) string {
	if s == "io" || s == "ec" {
		return strings.ToUpper(s)
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
