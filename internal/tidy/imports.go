package tidy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// row of the import table: what the packages at and below dir may import of
// this module. The longest dir that fits a package is its row.
type row struct {
	dir string
	may []string // directories; "dir/..." includes those below
	why string
}

// importTable is the table of DESIGN 1: imports point down only. Tests may
// import anything. A package may always import those below its own row's
// directory unless they have a row of their own, and everybody but the pure
// packages may import internal/invariants.
var importTable = []row{
	{"cmd", []string{"..."}, "commands wire everything together, and nobody imports them"},
	{"test", []string{"..."}, "whole-cluster tests see everything"},

	{"fuse", []string{"client", "fuse/filecache", "iopath", "cfs"}, "a front end stands on the client alone; the kernel's requests come through a ring of iopath's"},
	{"fuse/filecache", []string{"internal/durable", "cfs"}, "whole files in a local directory, whoever brings and reads them"},
	{"node", []string{"store", "raftmeta", "client", "wire", "wire/wirepb", "nvme", "iopath", "pki", "internal/durable", "internal/top", "cfs"}, "a node joins the services of a server; its restriper is a client of its own cluster"},
	{"cluster", []string{"wire", "wire/wirepb", "internal/rawdisk", "internal/scrape", "cfs"}, "a cluster drives the binaries by exec, as a user does"},
	{"perf", []string{"client", "wire", "wire/wirepb", "nvme", "iopath", "ec", "cfs", "bpf", "internal/rawdisk", "internal/scrape", "internal/units"}, "a load tool drives servers by exec and measures the client and the mechanisms"},
	{"bpf", []string{"cfs"}, "observation stands beside what it observes"},

	{"client", []string{"wire", "wire/wirepb", "ec", "iopath", "pki", "cfs"}, "a client speaks wire: it never reaches into a service"},
	{"store", []string{"wire", "wire/wirepb", "nvme", "iopath", "ec", "cfs"}, "services never import each other: node joins them"},
	{"raftmeta", []string{"raftmeta/...", "wire", "wire/wirepb", "pki", "internal/durable", "internal/planted", "internal/top", "cfs"}, "services never import each other: node joins them"},
	{"raftmeta/kv", []string{"raftmeta/fsm", "internal/durable", "cfs"}, "a KV implements what the machine asks for"},
	{"raftmeta/wal", []string{"internal/durable", "cfs"}, "the log carries bytes and knows no commands"},
	{"raftmeta/lease", []string{"cfs"}, "the table is pure: a transcript says all that it does"},
	{"raftmeta/fsm", []string{"cfs"}, "the machine is pure: every replica and every replay computes the same state"},

	{"wire", []string{"wire/wirepb", "cfs"}, "a mechanism: frames and connections, not what they are for"},
	{"wire/wirepb", nil, "generated messages are a leaf"},
	{"ec", []string{"cfs"}, "pure arithmetic"},
	{"pki", []string{"internal/durable", "cfs"}, "keys and certificates: it knows no connections"},
	{"nvme", []string{"iopath", "cfs"}, "a mechanism: devices and the log on them"},
	{"iopath", []string{"cfs"}, "a mechanism: it knows no file system"},

	{"cfs", nil, "the vocabulary is a leaf: everybody imports it"},
	{"internal", nil, "internal packages are leaves"},
	{"internal/rawdisk", []string{"cfs"}, "what the demo and perf both measure a disk with"},
	{"internal/scrape", []string{"cfs"}, "what the demo and perf both read a process's figures with"},
}

// pureDirs may not import internal/invariants either: they are leaves, or
// depend on cfs alone.
var pureDirs = []string{"cfs", "wire/wirepb", "internal", "raftmeta/fsm"}

// module from outside: the packages that may import it. A module that is not
// listed may not be imported: a dependency is a decision.
type module struct {
	path string   // a prefix of import paths
	by   []string // directories, with all below them; cmd may import any listed module
	why  string
}

// moduleTable is checked in order; the first path that fits decides.
var moduleTable = []module{
	{"go.etcd.io/raft/v3", []string{"raftmeta"}, "consensus stays behind raftmeta"},
	{"github.com/cockroachdb/pebble/v2", []string{"raftmeta/kv"}, "the KV stays behind one small interface"},
	{"github.com/tidwall/btree", []string{"raftmeta/kv", "nvme", "client"}, "ordered indexes in memory"},
	{"github.com/hanwen/go-fuse/v2", []string{"fuse"}, "the kernel's protocol stays in fuse"},
	{"github.com/klauspost/reedsolomon", []string{"ec"}, "coding stays in ec"},
	{"github.com/iceber/iouring-go", []string{"iopath"}, "the reference engine stays behind iopath.Engine"},
	{"github.com/cilium/ebpf", []string{"bpf"}, "loading programs stays in bpf"},
	{"github.com/cockroachdb/datadriven", nil, "for tests"},
	{"github.com/anishathalye/porcupine", nil, "for tests"},
	{"github.com/spf13/cobra", nil, "command lines belong to cmd"},
	{"github.com/spf13/pflag", nil, "command lines belong to cmd"},
	{"github.com/pkg/profile", nil, "profiling flags belong to cmd"},
	{"github.com/prometheus", []string{"wire", "store", "raftmeta", "client", "node", "cluster", "perf", "fuse"}, "services and front ends count; mechanisms return their numbers"},
	{"google.golang.org/protobuf", []string{"wire", "raftmeta", "store", "client", "node", "cluster"}, "protobuf is for the wire: state and disk formats are fixed little-endian, and the machine takes Go structs"},
	{"golang.org/x/sys", []string{"iopath", "nvme", "wire", "raftmeta", "client", "fuse", "node", "cluster", "perf", "bpf", "internal/rawdisk"}, "system calls belong to what does I/O"},
	{"golang.org/x/sync", []string{"wire", "store", "raftmeta", "client", "fuse", "node", "cluster", "perf"}, "concurrency belongs to what does I/O"},
}

// modulesBarred are packages that a directory which moduleTable allows still
// keeps out, because it lies inside one that is allowed.
var modulesBarred = []string{"raftmeta/fsm"}

// importsAllowed holds importTable.
func importsAllowed(p *Package) []Violation {
	r := rowOf(p.Dir)
	if r == nil {
		return []Violation{{Path: p.Dir, Rule: "imports", Text: "has no row in the import table: say in internal/tidy/imports.go what it may import, and why"}}
	}
	var found []Violation
	for _, f := range p.Files {
		if f.Test {
			continue
		}
		for _, spec := range f.AST.Imports {
			target, ours := strings.CutPrefix(importPath(spec.Path.Value), Module+"/")
			if ours && !mayImport(r, p.Dir, target) {
				found = append(found, p.at(spec.Pos(), "imports", "%s may not import %s: %s", p.Dir, target, r.why))
			}
		}
	}
	return found
}

// rowOf is the row of a directory, nil for none.
func rowOf(dir string) *row {
	var best *row
	for i := range importTable {
		r := &importTable[i]
		if within(dir, r.dir) && (best == nil || len(r.dir) > len(best.dir)) {
			best = r
		}
	}
	return best
}

// mayImport applies row r to the import of target from dir.
func mayImport(r *row, dir, target string) bool {
	if within(target, "cmd") && !within(dir, "cmd") {
		return false
	}
	if target == "internal/invariants" {
		return !slices.ContainsFunc(pureDirs, func(pure string) bool { return within(dir, pure) })
	}
	if rowOf(target) == r && r.dir != "internal" {
		return true
	}
	return slices.ContainsFunc(r.may, func(allowed string) bool {
		if tree, all := strings.CutSuffix(allowed, "..."); all {
			return strings.HasPrefix(target+"/", tree)
		}
		return target == allowed
	})
}

// modulesAllowed holds moduleTable, and that nothing needs cgo.
func modulesAllowed(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		for _, spec := range f.AST.Imports {
			if why := barred(p, importPath(spec.Path.Value)); why != "" {
				found = append(found, p.at(spec.Pos(), "modules", "%s may not import %s: %s", p.Dir, spec.Path.Value, why))
			}
		}
	}
	return found
}

// barred is why p may not import path from outside this module; "" if it may.
func barred(p *Package, path string) string {
	if path == "C" {
		return "CGO_ENABLED=0 builds everything"
	}
	first, _, _ := strings.Cut(path, "/")
	if path == Module || strings.HasPrefix(path, Module+"/") || !strings.Contains(first, ".") {
		return ""
	}
	for _, m := range moduleTable {
		if !within(path, m.path) {
			continue
		}
		if slices.Contains(modulesBarred, p.Dir) {
			return "it imports cfs and the standard library alone"
		}
		allowed := p.command() || within(p.Dir, "test") ||
			slices.ContainsFunc(m.by, func(dir string) bool { return within(p.Dir, dir) })
		if allowed {
			return ""
		}
		return fmt.Sprintf("%s (allowed in: %s)", m.why, strings.Join(append(slices.Clone(m.by), "cmd"), " "))
	}
	return "a new dependency is a decision: add it to internal/tidy/imports.go with its reason"
}

// importPath is the unquoted path of an import declaration.
func importPath(quoted string) string {
	path, err := strconv.Unquote(quoted)
	if err != nil {
		return quoted
	}
	return path
}
