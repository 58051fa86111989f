//go:build iouringgo

package iopath

import (
	"os"
	"os/exec"
	"testing"
)

// iouringGoFaults are the tests of the suite that the library fails, and why.
func iouringGoFaults() map[string]string {
	return map[string]string{
		"Files":       "RegisterFile puts every file after the first into slot 0 of the table, over the one before",
		"ClosedFiles": "as Files; and the table goes by descriptor numbers, which the next file gets when one is closed",
		"Closed":      "SubmitRequests looks at the queue before it looks whether the ring is closed, and dereferences nil",
	}
}

// taggedContenders is the library's part in the benchmarks.
func taggedContenders() []contender {
	return []contender{{"iouring-go", goroutines(func(a *Arena, _ int) (Engine, error) { return NewIouringGo(RingConfig{Arena: a}) })}}
}

func openIouringGo(t *testing.T, a *Arena) Engine {
	e, err := NewIouringGo(RingConfig{Entries: engineEntries, Arena: a})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestIouringGo runs the suite. Tests that are known to fail run in a process of
// their own, where they may also hang or crash, and must still fail there, so
// that the list stays true.
func TestIouringGo(t *testing.T) {
	faults := iouringGoFaults()
	for name, test := range engineSuite() {
		t.Run(name, func(t *testing.T) {
			why, known := faults[name]
			if !known {
				runEngineTest(t, openIouringGo, test)
				return
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestIouringGoFault$", "-test.timeout=20s")
			cmd.Env = append(os.Environ(), "IOPATH_FAULT="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("a known fault is gone: %s\n%s", why, out)
			}
			t.Logf("%s\n%s", why, out)
		})
		delete(faults, name)
	}
	for name := range faults {
		t.Errorf("the suite has no test %s", name)
	}
}

// TestIouringGoFault runs one test of the suite as if it were not known to fail.
func TestIouringGoFault(t *testing.T) {
	test := engineSuite()[os.Getenv("IOPATH_FAULT")]
	if test == nil {
		t.Skip("run by TestIouringGo")
	}
	runEngineTest(t, openIouringGo, test)
}
