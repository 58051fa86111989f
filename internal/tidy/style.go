package tidy

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/token"
	"regexp"
	"strings"
)

// The sizes above which a thing has become two things.
const (
	maxFileLines        = 600
	maxFunctionLines    = 70
	maxInterfaceMethods = 7
	maxMainLines        = 60
)

// formatted holds that gofmt would change nothing, in tests too.
func formatted(p *Package) []Violation {
	var found []Violation
	for _, f := range p.Files {
		want, err := format.Source(f.Src)
		if err != nil || !bytes.Equal(want, f.Src) {
			found = append(found, Violation{Path: f.Path, Rule: "gofmt", Text: "gofmt would change it"})
		}
	}
	return found
}

// packageDocumented holds that the package's documentation is in the one place
// where a reader looks: doc.go, or the only file of a package, or main.go.
func packageDocumented(p *Package) []Violation {
	files := p.code()
	if len(files) == 0 {
		return nil
	}
	var found []Violation
	var documented bool
	for _, f := range files {
		if f.AST.Doc == nil {
			continue
		}
		documented = true
		home := strings.HasSuffix(f.Path, "/doc.go") || len(files) == 1 || f.AST.Name.Name == "main" && strings.HasSuffix(f.Path, "/main.go")
		if !home {
			found = append(found, p.at(f.AST.Package, "docs", "the package comment belongs in doc.go"))
		}
		if f.AST.Name.Name != "main" && !strings.HasPrefix(f.AST.Doc.Text(), "Package "+f.AST.Name.Name+" ") {
			found = append(found, p.at(f.AST.Package, "docs", "the package comment begins %q", "Package "+f.AST.Name.Name+" "))
		}
	}
	if !documented {
		found = append(found, Violation{Path: p.Dir, Rule: "docs", Text: "has no package comment (doc.go): what it is for, how to use it, what deadlocks"})
	}
	return found
}

// exportedDocumented holds that every exported name has a comment. The comment
// of a group of constants or variables documents its names.
func exportedDocumented(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		if f.AST.Name.Name == "main" {
			continue
		}
		for _, decl := range f.AST.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && d.Doc == nil {
					found = append(found, p.at(d.Pos(), "docs", "exported %s has no comment", d.Name.Name))
				}
			case *ast.GenDecl:
				for _, name := range undocumented(d) {
					found = append(found, p.at(name.Pos(), "docs", "exported %s has no comment", name.Name))
				}
			}
		}
	}
	return found
}

// undocumented is the exported names of a declaration that no comment covers.
func undocumented(d *ast.GenDecl) []*ast.Ident {
	if d.Doc != nil && (d.Tok != token.TYPE || len(d.Specs) == 1) {
		return nil
	}
	var names []*ast.Ident
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && s.Comment == nil {
				names = append(names, s.Name)
			}
		case *ast.ValueSpec:
			for _, name := range s.Names {
				if name.IsExported() && s.Doc == nil && s.Comment == nil {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// exportedReceiver reports that d is a function, or a method of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	expr := d.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.IsExported()
		default:
			return true
		}
	}
}

// fileSizes bounds the lines of a file.
func fileSizes(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		if lines := bytes.Count(f.Src, []byte("\n")); lines > maxFileLines {
			found = append(found, p.at(f.AST.Package, "size", "the file has %d lines, at most %d: what are its two subjects?", lines, maxFileLines))
		}
	}
	return found
}

// functionSizes bounds the lines of a function, function literals outside
// functions included.
func functionSizes(p *Package) []Violation {
	var found []Violation
	measure := func(node ast.Node, name string) {
		lines := p.Fset.Position(node.End()).Line - p.Fset.Position(node.Pos()).Line + 1
		if lines > maxFunctionLines {
			found = append(found, p.at(node.Pos(), "size", "%s has %d lines, at most %d", name, lines, maxFunctionLines))
		}
	}
	for _, f := range p.code() {
		for _, decl := range f.AST.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok {
				measure(d, d.Name.Name)
				continue
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if lit, ok := n.(*ast.FuncLit); ok {
					measure(lit, "a function literal")
					return false
				}
				return true
			})
		}
	}
	return found
}

// interfaceSizes bounds the methods of an interface, those of embedded
// interfaces of the same package included.
func interfaceSizes(p *Package) []Violation {
	local := map[string]*ast.InterfaceType{}
	for _, f := range p.code() {
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if it, ok := spec.Type.(*ast.InterfaceType); ok {
					local[spec.Name.Name] = it
				}
			}
			return true
		})
	}
	var count func(it *ast.InterfaceType) int
	count = func(it *ast.InterfaceType) int {
		n := 0
		for _, field := range it.Methods.List {
			embedded, ok := field.Type.(*ast.Ident)
			switch {
			case len(field.Names) > 0:
				n += len(field.Names)
			case ok && local[embedded.Name] != nil && local[embedded.Name] != it:
				n += count(local[embedded.Name])
			default:
				n++
			}
		}
		return n
	}
	var found []Violation
	for _, f := range p.code() {
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if it, ok := n.(*ast.InterfaceType); ok {
				if methods := count(it); methods > maxInterfaceMethods {
					found = append(found, p.at(it.Pos(), "size", "an interface of %d methods, at most %d: whoever uses it needs fewer", methods, maxInterfaceMethods))
				}
			}
			return true
		})
	}
	return found
}

// mainSizes bounds the main files of commands: flags, wiring, Run.
func mainSizes(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		if !p.command() || !strings.HasSuffix(f.Path, "/main.go") {
			continue
		}
		if lines := bytes.Count(f.Src, []byte("\n")); lines > maxMainLines {
			found = append(found, p.at(f.AST.Package, "size", "main.go has %d lines, at most %d: flags, wiring, Run", lines, maxMainLines))
		}
	}
	return found
}

// unfinished matches the marks of work left for later.
var unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)

// nothingUnfinished holds that comments promise no later work: that is what
// issues are for.
func nothingUnfinished(p *Package) []Violation {
	var found []Violation
	for _, f := range p.code() {
		for _, group := range f.AST.Comments {
			if mark := unfinished.FindString(group.Text()); mark != "" {
				found = append(found, p.at(group.Pos(), "unfinished", "%s: finish it, or file an issue", mark))
			}
		}
	}
	return found
}
