package tidy

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGeneratedCode regenerates into a scratch directory, by the script that
// `make generate` uses, and compares with what is committed.
func TestGeneratedCode(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is not installed (`make deps` installs it): cannot tell whether the generated code is up to date")
	}
	out := t.TempDir()
	if text, err := exec.Command(filepath.Join(root, "hack", "generate.sh"), out).CombinedOutput(); err != nil {
		t.Fatalf("hack/generate.sh: %v\n%s", err, text)
	}

	fresh := map[string]bool{}
	err := filepath.WalkDir(out, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(out, name)
		if err != nil {
			return err
		}
		fresh[rel] = true
		compareGenerated(t, rel, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(fresh) == 0 {
		t.Fatal("hack/generate.sh generated nothing")
	}
	tree, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tree {
		for _, f := range p.Files {
			if strings.HasSuffix(f.Path, ".pb.go") && !fresh[filepath.FromSlash(f.Path)] {
				t.Errorf("%s is generated from nothing: its .proto file is gone", f.Path)
			}
		}
	}
}

// compareGenerated compares the committed file rel with the one just made.
func compareGenerated(t *testing.T, rel, made string) {
	t.Helper()
	want, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, rel))
	if err != nil {
		t.Errorf("%s is not committed: run `make generate` (%v)", rel, err)
		return
	}
	if !bytes.Equal(withoutCompiler(got), withoutCompiler(want)) {
		t.Errorf("%s is not what its source generates: run `make generate`", rel)
	}
}

// withoutCompiler drops the comment that names protoc's version: another version
// of the compiler may be installed, and gives the same code.
func withoutCompiler(src []byte) []byte {
	lines := bytes.SplitAfter(src, []byte("\n"))
	var kept [][]byte
	for _, line := range lines {
		if !bytes.HasPrefix(line, []byte("// \tprotoc  ")) {
			kept = append(kept, line)
		}
	}
	return bytes.Join(kept, nil)
}
