package perf

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/units"
)

// The operators and kinds of a Target.
const (
	AtLeast = ">="
	AtMost  = "<="

	KindHard   = "hard"   // a miss fails the gate
	KindReport = "report" // a miss is told
)

// Target is a bound on one number of a bench, or on the ratio of one of its rows to
// another.
type Target struct {
	Name string `json:"name"`
	What string `json:"what"` // for people
	// Metric of the row that has the labels Of, divided by that of the row that has
	// the labels Over, if any. Both are the median over the rounds.
	Metric Metric  `json:"metric"`
	Of     Labels  `json:"of"`
	Over   Labels  `json:"over,omitempty"`
	Op     string  `json:"op"`
	Value  float64 `json:"value"`
	Kind   string  `json:"kind"`
}

// TargetFile is one bench, with its parameters, and the targets on what it measures:
//
//	{
//	  "bench": "io",
//	  "size": "1GiB",
//	  "params": {"engines": ["native", "fio"], "rw": "randread", "bs": "4KiB", "depth": [32], "runtime": "1s", "rounds": 5},
//	  "targets": [{"name": "...", "what": "...", "metric": "iops", "of": {"engine": "native"}, "over": {"engine": "fio"},
//	    "op": ">=", "value": 1, "kind": "hard"}]
//	}
//
// The parameters are the fields of IOConfig, LogConfig, OpenConfig, CleanConfig, ECConfig,
// FileConfig or MetaConfig.
type TargetFile struct {
	Path    string          `json:"-"` // of the file, for errors and reports
	Bench   string          `json:"bench"`
	Size    units.Bytes     `json:"size"` // of the file that io and log work on; the others know theirs
	Params  json.RawMessage `json:"params"`
	Targets []Target        `json:"targets"`

	plan benchPlan
}

//go:embed targets
var embedded embed.FS

// Profile is the directory of the target files that are built in under a name,
// such as ci.
func Profile(name string) (fs.FS, error) {
	entries, err := fs.ReadDir(embedded, "targets")
	if err != nil {
		return nil, cfs.E("read the targets", cfs.IO, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Contains(names, name) {
		return nil, cfs.Errorf("--profile", cfs.Usage, "%q is none of %s", name, strings.Join(names, ", "))
	}
	return fs.Sub(embedded, path.Join("targets", name))
}

// ReadTargets reads every *.json of a directory, in the order of their names.
// Invalid, naming the file and the field, when one is not as it should be.
func ReadTargets(dir fs.FS) ([]*TargetFile, error) {
	names, err := fs.Glob(dir, "*.json")
	if err != nil {
		return nil, cfs.E("read the targets", cfs.IO, err)
	}
	var files []*TargetFile
	where := map[string]string{} // target: file
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, cfs.E("read the targets", cfs.KindOf(err), err)
		}
		f, err := parseTargets(name, text)
		if err != nil {
			return nil, err
		}
		for _, t := range f.Targets {
			if other, twice := where[t.Name]; twice {
				return nil, cfs.Errorf(name, cfs.Invalid, "targets: the name %q is in %s too", t.Name, other)
			}
			where[t.Name] = name
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, cfs.Errorf("read the targets", cfs.NotFound, "there is no *.json")
	}
	return files, nil
}

// parseTargets reads one file.
func parseTargets(name string, text []byte) (*TargetFile, error) {
	f := &TargetFile{Path: name}
	if err := strictJSON(text, f); err != nil {
		return nil, cfs.E(name, cfs.Invalid, err)
	}
	make, ok := benchTable[f.Bench]
	if !ok {
		return nil, cfs.Errorf(name, cfs.Invalid, "bench: %q is none of %s", f.Bench, strings.Join(benchNames(), ", "))
	}
	f.plan = make()
	if err := strictJSON(f.Params, f.plan); err != nil {
		return nil, cfs.Errorf(name, cfs.Invalid, "params: %w", err)
	}
	if err := f.plan.valid(int64(f.Size)); err != nil {
		// What the command line calls --rw, the file calls rw.
		return nil, cfs.Errorf(name, cfs.Invalid, "params: %s", strings.ReplaceAll(err.Error(), "--", ""))
	}
	if len(f.Targets) == 0 {
		return nil, cfs.Errorf(name, cfs.Invalid, "targets: there is none")
	}
	for i := range f.Targets {
		if err := f.Targets[i].check(); err != nil {
			return nil, cfs.Errorf(name, cfs.Invalid, "targets[%d].%w", i, err)
		}
	}
	return f, nil
}

// strictJSON decodes one document that has no field that is not known.
func strictJSON(text []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return fmt.Errorf("at byte %d: %w", syntax.Offset, err)
		}
		return err
	}
	if dec.More() {
		return errors.New("something follows the document")
	}
	return nil
}

// check names the field that is wrong.
func (t *Target) check() error {
	switch {
	case t.Name == "":
		return errors.New("name: it has none")
	case t.What == "":
		return fmt.Errorf("what: %s has none", t.Name)
	case infoOf(t.Metric) == nil:
		return fmt.Errorf("metric: %s: there is no metric %q", t.Name, t.Metric)
	case len(t.Of) == 0:
		return fmt.Errorf("of: %s: it says no row", t.Name)
	case t.Op != AtLeast && t.Op != AtMost:
		return fmt.Errorf("op: %s: %q is neither %s nor %s", t.Name, t.Op, AtLeast, AtMost)
	case t.Kind != KindHard && t.Kind != KindReport:
		return fmt.Errorf("kind: %s: %q is neither %s nor %s", t.Name, t.Kind, KindHard, KindReport)
	}
	for _, labels := range []struct {
		field string
		of    Labels
	}{{"of", t.Of}, {"over", t.Over}} {
		for k := range labels.of {
			if !slices.Contains(labelOrder, k) {
				return fmt.Errorf("%s: %s: rows have no label %q", labels.field, t.Name, k)
			}
		}
	}
	return nil
}

// measure is the target's number in a report.
func (t *Target) measure(r *Report) (float64, error) {
	row, ok := r.find(t.Of)
	if !ok {
		return 0, cfs.Errorf("target "+t.Name, cfs.Invalid, "not one row of the bench has %s", t.Of)
	}
	v, have := row.median(t.Metric)
	if t.Over != nil {
		base, ok := r.find(t.Over)
		if !ok {
			return 0, cfs.Errorf("target "+t.Name, cfs.Invalid, "not one row of the bench has %s", t.Over)
		}
		v, have = row.ratio(base, t.Metric)
	}
	if !have {
		return 0, cfs.Errorf("target "+t.Name, cfs.Invalid, "the bench does not measure %s of %s", t.Metric, row.Labels)
	}
	return v, nil
}

// met reports whether a number is within the target.
func (t *Target) met(v float64) bool {
	if t.Op == AtLeast {
		return v >= t.Value
	}
	return v <= t.Value
}

// better is the one of two numbers that is nearer to the target, or farther within it.
func (t *Target) better(a, b float64) float64 {
	if t.Op == AtLeast {
		return max(a, b)
	}
	return min(a, b)
}
