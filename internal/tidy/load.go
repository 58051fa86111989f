package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// Module is the path of the module whose rules these are.
const Module = "github.com/claudefs/claudefs"

// File is one Go file.
type File struct {
	Path      string // slash-separated, from the module's root: "cfs/errors.go"
	Src       []byte
	AST       *ast.File
	Test      bool // its name ends in _test.go
	Generated bool // it has the standard "Code generated" line
}

// Package is the Go files of one directory.
type Package struct {
	Dir   string // from the module's root; "." for the root itself
	Files []*File
	Fset  *token.FileSet
	// Info resolves names as far as the module's own sources go: what comes from
	// other modules and the standard library has no type here.
	Info *types.Info
}

// Tree is the module, by directory.
type Tree map[string]*Package

// Violation is one breach of one rule.
type Violation struct {
	Path string // of the file, or of the directory for a rule over a package
	Line int    // 0 for none
	Rule string // short name
	Text string // what is wrong, and why it is a rule
}

// String is the violation as compilers print theirs.
func (v Violation) String() string {
	where := v.Path
	if v.Line > 0 {
		where = fmt.Sprintf("%s:%d", v.Path, v.Line)
	}
	return fmt.Sprintf("%s: [%s] %s", where, v.Rule, v.Text)
}

// Load parses every Go file below root, the module's root directory. It fails
// on a file that cannot be read or parsed.
func Load(root string) (Tree, error) {
	sources := map[string][]byte{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		src, err := os.ReadFile(name)
		sources[filepath.ToSlash(rel)] = src
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("walk the tree: %w", err)
	}
	return Parse(sources)
}

// Parse makes a Tree of sources, keyed by the path from the module's root.
func Parse(sources map[string][]byte) (Tree, error) {
	names := make([]string, 0, len(sources))
	for name := range sources {
		names = append(names, name)
	}
	sort.Strings(names)

	fset := token.NewFileSet()
	tree := Tree{}
	for _, name := range names {
		syntax, err := parser.ParseFile(fset, name, sources[name], parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		dir := path.Dir(name)
		if tree[dir] == nil {
			tree[dir] = &Package{Dir: dir, Fset: fset}
		}
		tree[dir].Files = append(tree[dir].Files, &File{
			Path:      name,
			Src:       sources[name],
			AST:       syntax,
			Test:      strings.HasSuffix(name, "_test.go"),
			Generated: ast.IsGenerated(syntax),
		})
	}
	r := resolver{tree: tree, done: map[string]*types.Package{}}
	for dir := range tree {
		r.resolve(dir)
	}
	return tree, nil
}

// code is the package's files that the rules of style apply to: neither tests
// nor generated.
func (p *Package) code() []*File {
	var files []*File
	for _, f := range p.Files {
		if !f.Test && !f.Generated {
			files = append(files, f)
		}
	}
	return files
}

// command reports that the package is a main of cmd/.
func (p *Package) command() bool { return within(p.Dir, "cmd") }

// at makes a violation at a position of one of the package's files.
func (p *Package) at(pos token.Pos, rule, format string, args ...any) Violation {
	where := p.Fset.Position(pos)
	return Violation{Path: where.Filename, Line: where.Line, Rule: rule, Text: fmt.Sprintf(format, args...)}
}

// within reports that dir is root or below it.
func within(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

// resolver type-checks the module's packages against each other. Imports from
// elsewhere become empty packages, and the errors that follow are dropped: the
// compiler reports errors, this only finds what names refer to.
type resolver struct {
	tree Tree
	done map[string]*types.Package // by import path
}

// Import implements types.Importer.
func (r *resolver) Import(importPath string) (*types.Package, error) {
	if importPath == "unsafe" {
		return types.Unsafe, nil
	}
	if dir, ours := strings.CutPrefix(importPath, Module+"/"); ours && r.tree[dir] != nil {
		return r.resolve(dir), nil
	}
	pkg := r.done[importPath]
	if pkg == nil {
		pkg = types.NewPackage(importPath, defaultName(importPath))
		pkg.MarkComplete()
		r.done[importPath] = pkg
	}
	return pkg, nil
}

// resolve checks the package in dir, once, and fills its Info.
func (r *resolver) resolve(dir string) *types.Package {
	importPath := Module + "/" + dir
	if pkg := r.done[importPath]; pkg != nil {
		return pkg
	}
	// An import cycle, which the compiler refuses, meets the empty package.
	r.done[importPath] = types.NewPackage(importPath, path.Base(dir))

	p := r.tree[dir]
	var files []*ast.File
	for _, f := range p.Files {
		if !f.Test {
			files = append(files, f.AST)
		}
	}
	p.Info = &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{},
		Defs:  map[*ast.Ident]types.Object{},
		Uses:  map[*ast.Ident]types.Object{},
	}
	config := types.Config{Importer: r, Error: func(error) {}}
	// The error is the first of those that the Error function was given.
	pkg, _ := config.Check(importPath, p.Fset, files, p.Info)
	r.done[importPath] = pkg
	return pkg
}

// versionElement matches the last element of a path such as "math/rand/v2".
var versionElement = regexp.MustCompile(`^v[0-9]+$`)

// defaultName guesses the package name of an import path.
func defaultName(importPath string) string {
	if dir, base := path.Split(importPath); dir != "" && versionElement.MatchString(base) {
		importPath = path.Clean(dir)
	}
	return path.Base(importPath)
}
