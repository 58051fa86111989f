package perf

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// scrapeTimeout bounds one request for metrics.
	scrapeTimeout = 5 * time.Second
	// maxScrapeBytes bounds what is read of an answer, and maxSampleBytes one of its lines.
	maxScrapeBytes = 8 << 20
	maxSampleBytes = 64 << 10
)

// counter reads one figure of a process from its /metrics: the sum of the samples of
// name that carry a label (such as op="get"; empty for all).
func counter(ctx context.Context, addr, name, label string) (float64, error) {
	op := "read the metrics of " + addr
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0, cfs.E(op, cfs.Invalid, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, cfs.E(op, cfs.Unavailable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, cfs.Errorf(op, cfs.Unavailable, "%s", resp.Status)
	}
	v, err := sumSamples(io.LimitReader(resp.Body, maxScrapeBytes), name, label)
	if err != nil {
		return 0, cfs.E(op, cfs.KindOf(err), err)
	}
	return v, nil
}

// sumSamples adds up the samples of name in Prometheus' text format that carry a label,
// as its text. NotFound when there is none: a figure that went away is not zero.
func sumSamples(r io.Reader, name, label string) (float64, error) {
	sum, found := 0.0, false
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxSampleBytes)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		value := rest
		if i := strings.LastIndexByte(rest, '}'); i >= 0 { // a label's value may hold anything
			value = rest[i+1:]
		}
		if !strings.Contains(rest[:len(rest)-len(value)], label) {
			continue
		}
		fields := strings.Fields(value)
		if len(fields) == 0 {
			return 0, cfs.Errorf("read metrics", cfs.Corrupt, "%q has no value", s.Text())
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, cfs.Errorf("read metrics", cfs.Corrupt, "%q: %w", s.Text(), err)
		}
		sum, found = sum+v, true
	}
	if err := s.Err(); err != nil {
		return 0, cfs.E("read metrics", cfs.IO, err)
	}
	if !found {
		return 0, cfs.Errorf("read metrics", cfs.NotFound, "there is no %s{%s}", name, label)
	}
	return sum, nil
}
