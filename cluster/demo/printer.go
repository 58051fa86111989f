package demo

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// progressInterval is the least time between two updates of the progress line.
const progressInterval = 100 * time.Millisecond

// printer writes the demo's output: a line for each step, results below it and,
// on a terminal, a progress line that the next output replaces.
type printer struct {
	w        io.Writer
	terminal bool

	mu     sync.Mutex
	last   time.Time
	live   bool
	number int
	steps  int
}

func (p *printer) step(title string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.number++
	fmt.Fprintf(p.w, "[%2d/%d] %s\n", p.number, p.steps, title)
}

// result adds a line below the step.
func (p *printer) result(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, "        "+format+"\n", args...)
}

// text prints as it is.
func (p *printer) text(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	io.WriteString(p.w, s)
}

// progress replaces the progress line, at most every progressInterval.
func (p *printer) progress(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.terminal || time.Since(p.last) < progressInterval {
		return
	}
	p.last = time.Now()
	fmt.Fprintf(p.w, "\r\x1b[K        "+format, args...)
	p.live = true
}

func (p *printer) clear() {
	if p.live {
		io.WriteString(p.w, "\r\x1b[K")
		p.live = false
	}
}

// count is n with a comma between thousands.
func count[N int | int64 | uint64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size is a number of bytes as people read it.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// seconds is a duration as people read it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// perSecond is a rate.
func perSecond(n int64, d time.Duration) float64 { return float64(n) / max(d.Seconds(), 1e-9) }

// megabytes is a rate in 10^6 bytes a second, as fio and disk makers have it.
func megabytes(bytesPerSecond float64) string { return fmt.Sprintf("%.0f MB/s", bytesPerSecond/1e6) }

// table prints rows in columns, the first row being the titles.
func table(rows [][]string) string {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, cell := range r {
			fmt.Fprintf(&line, "%-*s  ", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
