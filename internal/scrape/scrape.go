// Package scrape reads the figures that a process of ours serves on /metrics, in
// Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats).
// [Read] asks a process; [Sum] and [Sums] add samples up over their labels.
package scrape

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
	// timeout bounds one request.
	timeout = 5 * time.Second
	// maxBytes bounds what is read of an answer, and maxLineBytes one of its lines.
	maxBytes     = 8 << 20
	maxLineBytes = 64 << 10
)

// Sample is one line: a figure under a name and labels, which are as the text has
// them, with their braces; empty without.
type Sample struct {
	Name, Labels string
	Value        float64
}

// Read is what http://addr/metrics says. Unavailable when nobody answers, or not so;
// otherwise as Parse.
func Read(ctx context.Context, addr string) ([]Sample, error) {
	op := "read the metrics of " + addr
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, cfs.E(op, cfs.Invalid, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, cfs.E(op, cfs.Unavailable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, cfs.Errorf(op, cfs.Unavailable, "%s", resp.Status)
	}
	samples, err := Parse(io.LimitReader(resp.Body, maxBytes))
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	return samples, nil
}

// Parse reads the text format. Corrupt when a line is not of it, IO when r fails or a
// line is too long.
func Parse(r io.Reader) ([]Sample, error) {
	var samples []Sample
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLineBytes)
	for line := 1; s.Scan(); line++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		name, rest := text, ""
		if i := strings.IndexAny(text, "{ "); i >= 0 {
			name, rest = text[:i], text[i:]
		}
		labels := ""
		if i := strings.LastIndexByte(rest, '}'); i >= 0 { // a label's value may hold anything
			labels, rest = rest[:i+1], rest[i+1:]
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return nil, cfs.Errorf("read metrics", cfs.Corrupt, "line %d has no value: %q", line, text)
		}
		v, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			return nil, cfs.Errorf("read metrics", cfs.Corrupt, "line %d: %w", line, err)
		}
		samples = append(samples, Sample{name, labels, v})
	}
	if err := s.Err(); err != nil {
		return nil, cfs.E("read metrics", cfs.IO, err)
	}
	return samples, nil
}

// Sum adds up the samples of a name that carry a label, as its text (such as op="get";
// empty for all). NotFound when there is none: a figure that went away is not zero.
func Sum(samples []Sample, name, label string) (float64, error) {
	sum, found := 0.0, false
	for _, s := range samples {
		if s.Name == name && strings.Contains(s.Labels, label) {
			sum, found = sum+s.Value, true
		}
	}
	if !found {
		return 0, cfs.Errorf("read metrics", cfs.NotFound, "there is no %s{%s}", name, label)
	}
	return sum, nil
}

// Sums adds up all samples of each name.
func Sums(samples []Sample) map[string]float64 {
	sums := map[string]float64{}
	for _, s := range samples {
		sums[s.Name] += s.Value
	}
	return sums
}
