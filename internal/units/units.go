// Package units reads and writes amounts as people do, on command lines and in
// data files: 4096, 64KiB, 8GiB.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes: a flag.Value, and text in JSON.
type Bytes int64

// suffixes of a Bytes, longest first; powers of 1024 all of them.
var suffixes = []struct {
	text  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}, {"", 1},
}

// Set reads the text form; the case of the suffix does not matter.
func (b *Bytes) Set(text string) error {
	for _, u := range suffixes {
		at := len(text) - len(u.text)
		if at < 0 || !strings.EqualFold(text[at:], u.text) {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(text[:at]), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		*b = Bytes(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is no size: a number with KiB, MiB, GiB or TiB is", text)
}

// String is the shortest text form.
func (b Bytes) String() string {
	for _, u := range suffixes[:4] {
		if b > 0 && int64(b)%u.bytes == 0 {
			return strconv.FormatInt(int64(b)/u.bytes, 10) + u.text
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Type is what help calls it.
func (b *Bytes) Type() string { return "size" }

// UnmarshalText is Set.
func (b *Bytes) UnmarshalText(text []byte) error { return b.Set(string(text)) }

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }
