package tidy

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// unsafeConfined holds that unsafe is imported in files named *_unsafe.go only,
// where reviews look twice.
func unsafeConfined(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		for _, spec := range f.AST.Imports {
			if importPath(spec.Path.Value) == "unsafe" && !strings.HasSuffix(f.Path, "_unsafe.go") {
				found = append(found, p.at(spec.Pos(), "unsafe", "unsafe belongs in a file named *_unsafe.go"))
			}
		}
	}
	return found
}

// noRegistration holds that importing a package does nothing: no init
// functions, no imports for their side effects.
func noRegistration(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		for _, decl := range f.AST.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" {
				found = append(found, p.at(d.Pos(), "init", "init runs behind the reader's back: call it from where it is needed"))
			}
		}
		for _, spec := range f.AST.Imports {
			if spec.Name == nil {
				continue
			}
			path := importPath(spec.Path.Value)
			switch {
			case spec.Name.Name == "_" && path != "embed":
				found = append(found, p.at(spec.Pos(), "init", "%q is imported for its side effects", path))
			case spec.Name.Name == ".":
				found = append(found, p.at(spec.Pos(), "init", "a dot import hides where names come from"))
			}
		}
	}
	return found
}

// exitsInCommandsOnly holds that a library neither parses flags nor ends the
// process nor writes to the global log.
func exitsInCommandsOnly(p *Package) []Violation {
	if p.command() {
		return nil
	}
	var found []Violation
	for _, f := range p.code() {
		for _, spec := range f.AST.Imports {
			switch path := importPath(spec.Path.Value); path {
			case "flag":
				found = append(found, p.at(spec.Pos(), "exit", "flags belong to cmd: a library takes a Config"))
			case "net/http/pprof", "expvar":
				found = append(found, p.at(spec.Pos(), "exit", "%s registers itself with the global HTTP server: only cmd may", path))
			}
		}
		p.eachForeign(f, func(pos token.Pos, path, name string) {
			switch {
			case path == "os" && name == "Exit" || path == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")):
				found = append(found, p.at(pos, "exit", "%s.%s ends the process: only cmd may, a library returns an error", path, name))
			case path == "log" && strings.HasPrefix(name, "Print"), path == "log/slog" && slices.Contains(globalLog, name):
				found = append(found, p.at(pos, "exit", "%s.%s uses the global logger: take a *slog.Logger in the Config", defaultName(path), name))
			}
		})
	}
	return found
}

// globalLog is the functions of log/slog that write to the default logger.
var globalLog = []string{
	"Debug", "DebugContext", "Info", "InfoContext", "Warn", "WarnContext", "Error", "ErrorContext",
	"Log", "LogAttrs", "SetDefault", "With",
}

// eachForeign calls fn for every use in f of a name of an imported package.
func (p *Package) eachForeign(f *File, fn func(pos token.Pos, path, name string)) {
	ast.Inspect(f.AST, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if path := p.packagePath(sel.X); path != "" {
				fn(sel.Pos(), path, sel.Sel.Name)
			}
		}
		return true
	})
}

// packagePath is the import path that an expression names; "" for anything else.
func (p *Package) packagePath(x ast.Expr) string {
	id, ok := x.(*ast.Ident)
	if !ok {
		return ""
	}
	pkg, ok := p.Info.Uses[id].(*types.PkgName)
	if !ok {
		return ""
	}
	return pkg.Imported().Path()
}

// pureMachines are the packages in which the same input must give the same
// bytes, on every replica and in every replay.
var pureMachines = []string{"raftmeta/fsm"}

// impureImports are the parts of the standard library by which the world gets
// into a pure package.
var impureImports = []string{
	"bufio", "crypto/rand", "hash/maphash", "io/fs", "io/ioutil", "log", "log/slog", "math/rand", "math/rand/v2", "net",
	"os", "os/exec", "os/signal", "runtime", "sync", "sync/atomic", "syscall", "unique",
}

// clockNames are the names of package time that read or wait for a clock.
var clockNames = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// machinePure holds that pureMachines have no clock, randomness, I/O,
// goroutine, or use of the order of a map.
func machinePure(p *Package) []Violation {
	if !slices.Contains(pureMachines, p.Dir) {
		return nil
	}
	const why = "every replica and every replay must compute the same state"
	var found []Violation
	for _, f := range p.code() {
		for _, spec := range f.AST.Imports {
			if path := importPath(spec.Path.Value); slices.Contains(impureImports, path) {
				found = append(found, p.at(spec.Pos(), "pure", "may not import %s: %s", path, why))
			}
		}
		p.eachForeign(f, func(pos token.Pos, path, name string) {
			if path == "time" && slices.Contains(clockNames, name) {
				found = append(found, p.at(pos, "pure", "may not use time.%s: %s", name, why))
			}
		})
		sorted := map[ast.Node]bool{}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			switch s := n.(type) {
			case *ast.BlockStmt:
				for i := 1; i < len(s.List); i++ {
					if after, ok := s.List[i].(*ast.ExprStmt); ok && p.sorts(after.X) {
						sorted[s.List[i-1]] = true
					}
				}
			case *ast.GoStmt:
				found = append(found, p.at(s.Pos(), "pure", "starts a goroutine: %s", why))
			case *ast.SelectStmt:
				found = append(found, p.at(s.Pos(), "pure", "select chooses at random: %s", why))
			case *ast.CallExpr:
				if p.sorts(s) {
					sorted[s.Args[0]] = true
				}
				if p.mapSequence(s) && !sorted[s] {
					found = append(found, p.at(s.Pos(), "pure", "takes the order of a map: %s; use slices.Sorted(maps.Keys(m))", why))
				}
			case *ast.RangeStmt:
				if p.isMap(s.X) && !sorted[s] {
					found = append(found, p.at(s.Pos(), "pure", "ranges in a map's order: %s; range over slices.Sorted(maps.Keys(m)), or sort what was collected in the very next statement", why))
				}
			}
			return true
		})
	}
	return found
}

// sorts reports a call that makes an order of its own: slices.Sort, slices.Sorted,
// their kin, and those of package sort.
func (p *Package) sorts(x ast.Expr) bool {
	call, ok := x.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	path := p.packagePath(sel.X)
	return path == "sort" || path == "slices" && strings.HasPrefix(sel.Sel.Name, "Sort")
}

// mapSequence reports a call that yields the elements of a map in its order.
func (p *Package) mapSequence(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && p.packagePath(sel.X) == "maps" && slices.Contains([]string{"All", "Keys", "Values"}, sel.Sel.Name)
}

// isMap reports that x is known to be a map.
func (p *Package) isMap(x ast.Expr) bool {
	t := p.Info.Types[x].Type
	if t == nil {
		return false
	}
	_, is := t.Underlying().(*types.Map)
	return is
}
