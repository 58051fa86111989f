package cluster

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
	// maxScrapeBytes bounds what is read of an answer.
	maxScrapeBytes = 8 << 20
)

// scrape reads http://addr/metrics.
func scrape(ctx context.Context, addr string) (map[string]float64, error) {
	op := "read the metrics of " + addr
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
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
	return parseMetrics(io.LimitReader(resp.Body, maxScrapeBytes))
}

// parseMetrics reads Prometheus' text format: samples of one name are added up
// over their labels.
func parseMetrics(r io.Reader) (map[string]float64, error) {
	sums := map[string]float64{}
	s := bufio.NewScanner(r)
	for line := 1; s.Scan(); line++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		name, rest := text, ""
		if i := strings.IndexAny(text, "{ "); i >= 0 {
			name, rest = text[:i], text[i:]
		}
		if i := strings.LastIndexByte(rest, '}'); i >= 0 { // a label's value may hold anything
			rest = rest[i+1:]
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return nil, cfs.Errorf("read metrics", cfs.Corrupt, "line %d has no value: %q", line, text)
		}
		v, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			return nil, cfs.Errorf("read metrics", cfs.Corrupt, "line %d: %w", line, err)
		}
		sums[name] += v
	}
	if err := s.Err(); err != nil {
		return nil, cfs.E("read metrics", cfs.IO, err)
	}
	return sums, nil
}
