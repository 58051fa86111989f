package tidy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the module's root, as a test of this package sees it.
const root = "../.."

func TestTree(t *testing.T) {
	tree, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if tree["cfs"] == nil || tree["internal/tidy"] == nil {
		t.Fatalf("the tree at %s has %d packages, and not those that it must have", root, len(tree))
	}
	for _, v := range Check(tree) {
		t.Error(v)
	}
}

func TestModulePath(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(mod), "module "+Module+"\n") {
		t.Fatalf("go.mod is not that of module %s", Module)
	}
}

func TestTablesAreInOrder(t *testing.T) {
	for _, r := range importTable {
		if r.why == "" {
			t.Errorf("the row of %s has no reason", r.dir)
		}
		for _, target := range r.may {
			if target = strings.TrimSuffix(strings.TrimSuffix(target, "..."), "/"); target != "" && rowOf(target) == nil {
				t.Errorf("the row of %s names %s, which has no row", r.dir, target)
			}
		}
	}
	for _, m := range moduleTable {
		if m.why == "" {
			t.Errorf("the row of %s has no reason", m.path)
		}
	}
}

// TestLinks checks that what the documents link to is there.
func TestLinks(t *testing.T) {
	var documents []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, found...)
	}
	if len(documents) == 0 {
		t.Fatal("no documents found")
	}
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links(string(text)) {
			target := filepath.Join(filepath.Dir(document), link)
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", document, link)
			}
		}
	}
}

// links is the targets inside the repository of a Markdown text's links.
func links(text string) []string {
	var found []string
	for _, part := range strings.Split(text, "](")[1:] {
		target, _, ok := strings.Cut(part, ")")
		target, _, _ = strings.Cut(target, "#")
		if ok && target != "" && !strings.Contains(target, "://") {
			found = append(found, target)
		}
	}
	return found
}
