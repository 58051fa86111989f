package tidy

import "sort"

// rule is one check over one package.
type rule func(*Package) []Violation

// rules are all of them.
var rules = []rule{
	importsAllowed,
	modulesAllowed,
	formatted,
	packageDocumented,
	exportedDocumented,
	fileSizes,
	functionSizes,
	interfaceSizes,
	mainSizes,
	nothingUnfinished,
	unsafeConfined,
	noRegistration,
	exitsInCommandsOnly,
	globalsReadOnly,
	machinePure,
}

// Check applies every rule to every package and returns what breaks them, in
// the order of paths and lines.
func Check(tree Tree) []Violation {
	var found []Violation
	for _, p := range tree {
		for _, check := range rules {
			found = append(found, check(p)...)
		}
	}
	sort.Slice(found, func(i, j int) bool {
		a, b := found[i], found[j]
		if a.Path != b.Path {
			return a.Path < b.Path
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Text < b.Text
	})
	return found
}
