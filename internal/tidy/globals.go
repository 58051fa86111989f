package tidy

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// globalsReadOnly holds that package-level variables are errors, tables, embeds
// and compile-time checks, and that nobody writes to them.
func globalsReadOnly(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		for _, decl := range f.AST.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.VAR {
				continue
			}
			for _, spec := range d.Specs {
				s := spec.(*ast.ValueSpec)
				if embedded(d, s) {
					continue
				}
				for i, name := range s.Names {
					if reason := p.notTable(s, i); reason != "" {
						found = append(found, p.at(name.Pos(), "globals", "package variable %s %s: state belongs in a value that someone owns (errors, read-only tables and embeds are fine)", name.Name, reason))
					}
				}
			}
		}
		found = append(found, p.globalWrites(f)...)
	}
	return found
}

// embedded reports a variable under a go:embed directive.
func embedded(d *ast.GenDecl, s *ast.ValueSpec) bool {
	for _, group := range []*ast.CommentGroup{d.Doc, s.Doc} {
		if group == nil {
			continue
		}
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:embed ") {
				return true
			}
		}
	}
	return false
}

// tableMakers are the functions whose results are tables, or are never changed.
var tableMakers = []string{
	"errors.New", "fmt.Errorf", Module + "/cfs.E", Module + "/cfs.Errorf",
	"hash/crc32.MakeTable", "hash/crc64.MakeTable", "regexp.MustCompile", "strings.NewReplacer", "text/template.Must",
	"github.com/prometheus/client_golang/prometheus.NewDesc", "sync.OnceValue",
}

// notTable is why variable i of a declaration is not one of the allowed kinds;
// "" if it is.
func (p *Package) notTable(s *ast.ValueSpec, i int) string {
	if s.Names[i].Name == "_" {
		return ""
	}
	if len(s.Values) == 0 {
		if _, ok := s.Type.(*ast.ArrayType); ok {
			return "" // a table of zeros
		}
		return "has no value"
	}
	if len(s.Values) != len(s.Names) {
		return "comes from a call with several results"
	}
	switch v := s.Values[i].(type) {
	case *ast.CompositeLit:
		if sel, ok := v.Type.(*ast.SelectorExpr); ok {
			if path := p.packagePath(sel.X); path == "sync" || path == "sync/atomic" {
				return "is shared state"
			}
		}
		return ""
	case *ast.CallExpr:
		switch fun := v.Fun.(type) {
		case *ast.ArrayType:
			return "" // []byte("magic")
		case *ast.SelectorExpr:
			if slices.Contains(tableMakers, p.packagePath(fun.X)+"."+fun.Sel.Name) {
				return ""
			}
		}
		return "is made by a call when the program starts"
	case *ast.SelectorExpr:
		if path := p.packagePath(v.X); path == "encoding/binary" || path == Module+"/cfs" {
			return "" // a byte order; a kind of error
		}
	case *ast.UnaryExpr:
		if lit, ok := v.X.(*ast.CompositeLit); ok && v.Op == token.AND && p.isError(lit.Type) {
			return ""
		}
		return "is a pointer to something that can change"
	case *ast.BasicLit:
		return "is a constant: use const"
	}
	return "is neither an error nor a table"
}

// isError reports the one error type of the system.
func (p *Package) isError(x ast.Expr) bool {
	if sel, ok := x.(*ast.SelectorExpr); ok {
		return p.packagePath(sel.X) == Module+"/cfs" && sel.Sel.Name == "Error"
	}
	id, ok := x.(*ast.Ident)
	return ok && p.Dir == "cfs" && id.Name == "Error"
}

// globalWrites finds assignments to package-level variables, of this package
// and of others, and pointers taken to them whole.
func (p *Package) globalWrites(f *File) []Violation {
	var found []Violation
	written := func(x ast.Expr, how string) {
		if name := p.globalRoot(x); name != "" {
			found = append(found, p.at(x.Pos(), "globals", "%s package variable %s: package variables are read-only", how, name))
		}
	}
	ast.Inspect(f.AST, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.AssignStmt:
			for _, left := range s.Lhs {
				written(left, "changes")
			}
		case *ast.IncDecStmt:
			written(s.X, "changes")
		case *ast.RangeStmt:
			if s.Tok == token.ASSIGN {
				written(s.Key, "changes")
				written(s.Value, "changes")
			}
		case *ast.UnaryExpr:
			// The address of a table's row is how a large row is read.
			if id, ok := s.X.(*ast.Ident); ok && s.Op == token.AND {
				written(id, "takes the address of")
			}
		}
		return true
	})
	return found
}

// packageOf is the package that a qualified name belongs to, nil for others.
func (p *Package) packageOf(x ast.Expr) *types.PkgName {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return nil
	}
	pkg, _ := p.Info.Uses[id].(*types.PkgName)
	return pkg
}

// globalRoot is the name of the package variable that an expression such as
// table[i].field is part of; "" if it is not part of one.
func (p *Package) globalRoot(x ast.Expr) string {
	for {
		switch e := x.(type) {
		case *ast.ParenExpr:
			x = e.X
		case *ast.StarExpr:
			x = e.X
		case *ast.IndexExpr:
			x = e.X
		case *ast.SelectorExpr:
			if pkg := p.packageOf(e); pkg != nil {
				return pkg.Name() + "." + e.Sel.Name
			}
			x = e.X
		case *ast.Ident:
			v, ok := p.Info.Uses[e].(*types.Var)
			if ok && v.Parent() != nil && v.Pkg() != nil && v.Parent() == v.Pkg().Scope() {
				return e.Name
			}
			return ""
		default:
			return ""
		}
	}
}
