package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// PrintJSON writes v as one indented document.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Table is a table for people: a row of titles, then rows of cells.
type Table struct {
	w *tabwriter.Writer
}

// NewTable starts a table with its titles.
func NewTable(w io.Writer, titles ...string) *Table {
	t := &Table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(titles)
	return t
}

// Row adds a row; cells are formatted as by fmt.Sprint.
func (t *Table) Row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = fmt.Sprint(c)
	}
	t.row(texts)
}

func (t *Table) row(cells []string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }

// Flush writes the table out.
func (t *Table) Flush() error { return t.w.Flush() }

// Size is a number of bytes as people read it: 7.5 GiB.
func Size(bytes uint64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, u := float64(bytes)/1024, 0
	for v >= 1023.95 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

// Percent is part of whole, as people read it; "-" when there is no whole.
func Percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}
