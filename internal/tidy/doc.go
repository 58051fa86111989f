// Package tidy is the repository's own rules, as a test.
//
// The rules are those of DESIGN's import table and of docs/STYLE.md that a
// machine can check. Load parses the tree, Check applies every rule to it, and
// the package's test fails with one line for each Violation: where, which rule,
// and why the rule is there.
//
//	imports.go    which package may import which, and which outside modules
//	style.go      documentation, sizes, formatting
//	restrict.go   what only some packages may do: unsafe, flags, exits, clocks
//	globals.go    package-level variables
//
// A rule is a function over a Package, whose files are parsed and, within this
// module, resolved; nothing outside the module is looked at, which keeps the
// whole run under a second or two. Tests and generated code are held to the
// formatting rule alone.
//
// A rule that hurts a natural shape is a reason to look for a better seam, or to
// change the rule here in a commit that says why.
package tidy
