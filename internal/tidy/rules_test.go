package tidy

import (
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// A ruleTest is a small tree and what one rule must say about it: want is a part
// of each violation in order, none for a tree that keeps the rule.
type ruleTest struct {
	name  string
	rule  rule
	files map[string]string
	want  []string
}

func TestRules(t *testing.T) {
	for _, tests := range [][]ruleTest{importTests, styleTests, restrictTests, globalTests, pureTests} {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) { test.run(t) })
		}
	}
}

// TestEveryRuleIsProved holds that each rule has a tree that it finds fault with
// and one that it does not.
func TestEveryRuleIsProved(t *testing.T) {
	name := func(r rule) string { return runtime.FuncForPC(reflect.ValueOf(r).Pointer()).Name() }
	breaks, keeps := map[string]bool{}, map[string]bool{}
	for _, tests := range [][]ruleTest{importTests, styleTests, restrictTests, globalTests, pureTests} {
		for _, test := range tests {
			if len(test.want) > 0 {
				breaks[name(test.rule)] = true
			} else {
				keeps[name(test.rule)] = true
			}
		}
	}
	for _, r := range rules {
		if !breaks[name(r)] || !keeps[name(r)] {
			t.Errorf("%s: a test that breaks it: %v, one that keeps it: %v", name(r), breaks[name(r)], keeps[name(r)])
		}
	}
}

func (test ruleTest) violations(t *testing.T) []Violation {
	t.Helper()
	sources := map[string][]byte{}
	for name, src := range test.files {
		sources[name] = []byte(src)
	}
	tree, err := Parse(sources)
	if err != nil {
		t.Fatal(err)
	}
	var found []Violation
	for _, p := range tree {
		found = append(found, test.rule(p)...)
	}
	return found
}

func (test ruleTest) run(t *testing.T) {
	var got []string
	for _, v := range test.violations(t) {
		got = append(got, v.String())
	}
	slices.Sort(got)
	if len(got) != len(test.want) {
		t.Fatalf("%d violations, want %d:\n%s", len(got), len(test.want), strings.Join(got, "\n"))
	}
	for i, want := range test.want {
		if !strings.Contains(got[i], want) {
			t.Errorf("violation %d is\n\t%s\nwant it to contain\n\t%s", i, got[i], want)
		}
	}
}

// one is a tree of one file.
func one(name, src string) map[string]string { return map[string]string{name: src} }

const ours = `"` + Module + "/"

var importTests = []ruleTest{
	{"import up", importsAllowed, one("iopath/a.go", "package iopath\nimport "+ours+"nvme\"\n"),
		[]string{"iopath/a.go:2: [imports] iopath may not import nvme: a mechanism: it knows no file system"}},
	{"import sideways", importsAllowed, one("store/a.go", "package store\nimport "+ours+"raftmeta\"\n"), []string{"store may not import raftmeta"}},
	{"import a service from the client", importsAllowed, one("client/a.go", "package client\nimport "+ours+"store\"\n"), []string{"client may not import store"}},
	{"import a command", importsAllowed, one("node/a.go", "package node\nimport "+ours+"cmd/internal/cli\"\n"), []string{"node may not import cmd/internal/cli"}},
	{"import from a leaf", importsAllowed, one("cfs/a.go", "package cfs\nimport "+ours+"ec\"\n"), []string{"cfs may not import ec"}},
	{"import wire from the machine", importsAllowed, one("raftmeta/fsm/a.go", "package fsm\nimport "+ours+"wire/wirepb\"\n"), []string{"raftmeta/fsm may not import wire/wirepb: the machine is pure"}},
	{"import the shell from its log", importsAllowed, one("raftmeta/wal/a.go", "package wal\nimport "+ours+"raftmeta\"\n"), []string{"raftmeta/wal may not import raftmeta"}},
	{"import invariants from the vocabulary", importsAllowed, one("cfs/a.go", "package cfs\nimport "+ours+"internal/invariants\"\n"), []string{"cfs may not import internal/invariants"}},
	{"a leaf imports a leaf", importsAllowed, one("internal/tidy/a.go", "package tidy\nimport "+ours+"internal/sim\"\n"), []string{"internal/tidy may not import internal/sim"}},
	{"no row", importsAllowed, one("util/a.go", "package util\n"), []string{"util: [imports] has no row"}},
	{"imports down", importsAllowed, map[string]string{
		"nvme/a.go":           "package nvme\nimport " + ours + "iopath\"\nimport " + ours + "internal/invariants\"\n",
		"nvme/nvmetest/a.go":  "package nvmetest\nimport " + ours + "nvme\"\n",
		"cmd/cfs/main.go":     "package main\nimport " + ours + "cmd/internal/cli\"\nimport " + ours + "node\"\n",
		"raftmeta/a.go":       "package raftmeta\nimport " + ours + "raftmeta/kv\"\nimport " + ours + "wire/wirepb\"\n",
		"raftmeta/kv/a.go":    "package kv\nimport " + ours + "raftmeta/fsm\"\n",
		"ec/a_test.go":        "package ec\nimport " + ours + "store\"\n",
		"wire/wirepb/doc.go":  "package wirepb\n",
		"raftmeta/fsm/doc.go": "package fsm\nimport \"sort\"\n",
	}, nil},

	{"an outside module out of place", modulesAllowed, one("store/a.go", "package store\nimport \"github.com/klauspost/reedsolomon\"\n"), []string{"[modules] store may not import \"github.com/klauspost/reedsolomon\": coding stays in ec (allowed in: ec cmd)"}},
	{"protobuf in the machine", modulesAllowed, one("raftmeta/fsm/a.go", "package fsm\nimport \"google.golang.org/protobuf/proto\"\n"), []string{"cfs and the standard library alone"}},
	{"a new dependency", modulesAllowed, one("store/a.go", "package store\nimport \"example.com/leftpad\"\n"), []string{"a new dependency is a decision"}},
	{"a library with flags", modulesAllowed, one("node/a.go", "package node\nimport \"github.com/spf13/cobra\"\n"), []string{"command lines belong to cmd"}},
	{"a near miss of a module's name", modulesAllowed, one("ec/a.go", "package ec\nimport \"github.com/klauspost/reedsolomonx\"\n"), []string{"a new dependency"}},
	{"cgo", modulesAllowed, one("iopath/a.go", "package iopath\nimport \"C\"\n"), []string{"CGO_ENABLED=0"}},
	{"outside modules in their places", modulesAllowed, map[string]string{
		"ec/a.go":             "package ec\nimport \"github.com/klauspost/reedsolomon\"\n",
		"cmd/cfs/main.go":     "package main\nimport \"github.com/spf13/cobra\"\n",
		"ec/a_test.go":        "package ec\nimport \"github.com/cockroachdb/datadriven\"\n",
		"raftmeta/wal/a.go":   "package wal\nimport \"go.etcd.io/raft/v3/raftpb\"\nimport \"os\"\n",
		"wire/wirepb/w.pb.go": "// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage wirepb\nimport \"example.com/x\"\n",
	}, nil},
}

var styleTests = []ruleTest{
	{"not formatted", formatted, one("ec/a_test.go", "package ec\nvar  x=1\n"), []string{"[gofmt]"}},
	{"formatted", formatted, one("ec/a.go", "package ec\n\nvar x = 1\n"), nil},

	{"no package comment", packageDocumented, one("ec/a.go", "package ec\n"), []string{"ec: [docs] has no package comment"}},
	{"package comment elsewhere", packageDocumented, map[string]string{"ec/a.go": "// Package ec codes.\npackage ec\n", "ec/b.go": "package ec\n"}, []string{"belongs in doc.go"}},
	{"package comment begins wrongly", packageDocumented, one("ec/doc.go", "// This codes.\npackage ec\n"), []string{`begins "Package ec "`}},
	{"package comments in place", packageDocumented, map[string]string{
		"ec/doc.go": "// Package ec codes.\npackage ec\n", "ec/b.go": "package ec\n",
		"cmd/cfs/main.go": "// Cfs is the command.\npackage main\n", "cmd/cfs/b.go": "package main\n",
		"wire/wirepb/w.pb.go": "// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage wirepb\n",
		"test/a_test.go":      "package test\n",
	}, nil},

	{"undocumented names", exportedDocumented, one("ec/a.go", `package ec

type T struct{}

func (T) M() {}

func F() {}

const A = 1

var (
	B = 1
	c = 1
)

type (
	U struct{}
)
`), []string{"a.go:12: [docs] exported B", "a.go:17: [docs] exported U", "a.go:3: [docs] exported T", "a.go:5: [docs] exported M", "a.go:7: [docs] exported F", "a.go:9: [docs] exported A"}},
	{"documented names", exportedDocumented, one("ec/a.go", `package ec

// T is.
type T[P any] struct{}

// M does.
func (*T[P]) M() {}

type hidden struct{}

func (hidden) Read() {}

// The constants.
const (
	A = 1
	B = 2
)

var (
	C = 1 // C is
	// D is.
	D = 1
)
`), nil},

	{"long file", fileSizes, one("ec/a.go", "package ec\n"+strings.Repeat("\n", maxFileLines)), []string{"has 601 lines, at most 600"}},
	{"file of the greatest length", fileSizes, one("ec/a.go", "package ec\n"+strings.Repeat("\n", maxFileLines-1)), nil},
	{"long test", fileSizes, one("ec/a_test.go", "package ec\n"+strings.Repeat("\n", maxFileLines)), nil},

	{"long function", functionSizes, one("ec/a.go", "package ec\n\nfunc f() {"+strings.Repeat("\n", maxFunctionLines)+"}\n"), []string{"a.go:3: [size] f has 71 lines"}},
	{"long function literal", functionSizes, one("ec/a.go", "package ec\n\nvar f = func() {"+strings.Repeat("\n", maxFunctionLines)+"}\n"), []string{"a function literal has 71 lines"}},
	{"function of the greatest length", functionSizes, one("ec/a.go", "package ec\n\nfunc f() {"+strings.Repeat("\n", maxFunctionLines-1)+"}\n"), nil},

	{"wide interface", interfaceSizes, one("ec/a.go", "package ec\ntype I interface{ A(); B(); C(); D(); E(); F(); G(); H() }\n"), []string{"an interface of 8 methods, at most 7"}},
	{"wide by embedding", interfaceSizes, one("ec/a.go", "package ec\ntype R interface{ A(); B(); C(); D() }\ntype I interface{ R; E(); F(); G(); H() }\n"), []string{"a.go:3: [size] an interface of 8 methods"}},
	{"wide and unnamed", interfaceSizes, one("ec/a.go", "package ec\nfunc f(x interface{ A(); B(); C(); D(); E(); F(); G(); H() }) {}\n"), []string{"8 methods"}},
	{"interface of the greatest width", interfaceSizes, one("ec/a.go", "package ec\ntype I interface{ A(); B(); C(); D(); E(); F(); G() }\n"), nil},

	{"long main", mainSizes, one("cmd/cfs/main.go", "package main\n"+strings.Repeat("\n", maxMainLines)), []string{"main.go has 61 lines"}},
	{"short main", mainSizes, one("cmd/cfs/main.go", "package main\n"+strings.Repeat("\n", maxMainLines-1)), nil},

	{"unfinished", nothingUnfinished, one("ec/a.go", "package ec\n\n// "+"TODO: later.\nfunc f() {}\n"), []string{"[unfinished] " + "TODO"}},
	{"finished", nothingUnfinished, one("ec/a.go", "package ec\n\n// TODOS is a word.\nfunc f() {}\n"), nil},
}

var restrictTests = []ruleTest{
	{"unsafe in a plain file", unsafeConfined, one("iopath/a.go", "package iopath\nimport \"unsafe\"\n"), []string{"[unsafe]"}},
	{"unsafe in its file", unsafeConfined, one("iopath/a_unsafe.go", "package iopath\nimport \"unsafe\"\n"), nil},

	{"init", noRegistration, one("ec/a.go", "package ec\nfunc init() {}\n"), []string{"[init] init runs"}},
	{"import for side effects", noRegistration, one("node/a.go", "package node\nimport _ \"net/http/pprof\"\n"), []string{"side effects"}},
	{"dot import", noRegistration, one("ec/a.go", "package ec\nimport . \"math\"\n"), []string{"dot import"}},
	{"no init", noRegistration, one("ec/a.go", "package ec\nimport _ \"embed\"\ntype t struct{}\nfunc (t) init() {}\n"), nil},

	{"library that exits", exitsInCommandsOnly, one("node/a.go", `package node

import (
	"flag"
	stdlog "log"
	"log/slog"
	"os"
)

var n = flag.Int("n", 1, "")

func f() {
	os.Exit(1)
	stdlog.Fatalf("no")
	stdlog.Println("no")
	slog.Info("no")
}
`), []string{"a.go:13: [exit] os.Exit ends", "a.go:14: [exit] log.Fatalf ends", "a.go:15: [exit] log.Println uses the global", "a.go:16: [exit] slog.Info uses the global", "a.go:4: [exit] flags belong"}},
	{"library that returns", exitsInCommandsOnly, one("node/a.go", `package node

import "log/slog"

type exit struct{}

func (exit) Exit(int) {}

func f(os exit, l *slog.Logger) {
	os.Exit(1)
	l.Info("yes", slog.Int("n", 1))
}
`), nil},
	{"command that exits", exitsInCommandsOnly, one("cmd/cfs/main.go", "package main\nimport \"os\"\nfunc main() { os.Exit(1) }\n"), nil},
}

var globalTests = []ruleTest{
	{"state", globalsReadOnly, one("ec/a.go", `package ec

import (
	"sync"
	"time"
)

var count int
var mu sync.Mutex
var pool = sync.Pool{}
var now = time.Now
var cache = make(map[int]int)
var defaults = &config{}
var limit = 3
var a, b = pair()

type config struct{}

func pair() (int, int) { return 1, 2 }
`), []string{"a.go:10: [globals] package variable pool is shared state", "a.go:11: [globals] package variable now", "a.go:12: [globals] package variable cache is made by a call",
		"a.go:13: [globals] package variable defaults is a pointer", "a.go:14: [globals] package variable limit is a constant", "a.go:15: [globals] package variable a comes", "a.go:15: [globals] package variable b comes",
		"a.go:8: [globals] package variable count has no value", "a.go:9: [globals] package variable mu has no value"}},
	{"writes", globalsReadOnly, map[string]string{"ec/a.go": `package ec

var table = [2]int{1, 2}
var rows = []struct{ n int }{{1}}
`, "ec/b.go": `package ec

import "net/http"

func f() {
	table[0] = 3
	rows[0].n++
	http.DefaultClient = nil
	_ = &table
	for table[1] = range 2 {
	}
}
`}, []string{"b.go:10: [globals] changes package variable table", "b.go:6: [globals] changes package variable table", "b.go:7: [globals] changes package variable rows", "b.go:8: [globals] changes package variable http.DefaultClient", "b.go:9: [globals] takes the address of package variable table"}},
	{"tables", globalsReadOnly, one("ec/a.go", `package ec

import (
	"embed"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/claudefs/claudefs/cfs"
)

//go:embed *.txt
var files embed.FS

var (
	_ io.Reader = (*reader)(nil)

	errClosed  = errors.New("closed")
	errGone    = cfs.E("x", cfs.NotFound, nil)
	errStale   = &cfs.Error{Op: "x"}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
	magic      = []byte("CFS")
	rows       = map[string]int{"a": 1}
	zeros      [4096]byte
)

type reader struct{ table []int }

func f(r *reader) (*int, []byte) {
	table := r.table
	table[0] = 1
	r.table[0]++
	magic := magic
	magic[0] = 'x'
	return &table[0], zeros[:]
}
`), nil},
}

var pureTests = []ruleTest{
	{"impure machine", machinePure, map[string]string{"cfs/a.go": "package cfs\n\ntype Map struct{ Nodes map[int]int }\n", "raftmeta/fsm/a.go": `package fsm

import (
	"maps"
	"math/rand"
	"slices"
	clock "time"

	"github.com/claudefs/claudefs/cfs"
)

func f(m map[int]int, c chan int, v *cfs.Map) {
	_ = clock.Now()
	go f(m, c, v)
	select {
	case <-c:
	default:
	}
	for range m {
	}
	for k := range v.Nodes {
		_ = rand.Intn(k)
	}
	_ = slices.Collect(maps.Keys(m))
}
`}, []string{"a.go:13: [pure] may not use time.Now", "a.go:14: [pure] starts a goroutine", "a.go:15: [pure] select", "a.go:19: [pure] ranges in a map's order", "a.go:21: [pure] ranges in a map's order", "a.go:24: [pure] takes the order of a map", "a.go:5: [pure] may not import math/rand"}},
	{"pure machine", machinePure, map[string]string{"raftmeta/fsm/a.go": `package fsm

import (
	"maps"
	"slices"
	"time"
)

const grace = 10 * time.Second

func f(m map[int]int) []int {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for range keys {
	}
	return slices.Sorted(maps.Keys(m))
}
`, "raftmeta/fsm/a_test.go": "package fsm\nimport \"time\"\nvar now = time.Now()\n", "raftmeta/a.go": "package raftmeta\nfunc f() { go f() }\n"}, nil},
}
