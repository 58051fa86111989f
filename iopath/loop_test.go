package iopath

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// recorder notes what a loop tells it, and stops when all is there.
type recorder struct {
	l       *Loop
	want    int
	posted  int
	answers []int32
}

func (r *recorder) Answered(_ uint32, res int32) { r.answers = append(r.answers, res); r.done() }
func (r *recorder) Posted(uint32)                { r.posted++; r.done() }
func (r *recorder) done() {
	if r.posted+len(r.answers) == r.want {
		r.l.Stop()
	}
}

// run has begin work with a loop in a goroutine, and returns the loop's end.
func runTestLoop(t *testing.T, want int, begin func(*Loop, *recorder) error) (*recorder, error) {
	t.Helper()
	r := &recorder{want: want}
	end := make(chan error, 1)
	go func() {
		end <- RunLoop(LoopConfig{Entries: 4, CPU: 0}, func(l *Loop) (LoopHandler, error) {
			r.l = l
			return r, begin(l, r)
		})
	}()
	err := <-end
	if r.l == nil {
		t.Skip(err)
	}
	return r, err
}

// Every word that is posted arrives, from whichever goroutine and whenever.
func TestLoopPosts(t *testing.T) {
	const posters, each = 8, 2000
	r, err := runTestLoop(t, posters*each, func(l *Loop, _ *recorder) error {
		var once sync.Once
		for range posters {
			go func() {
				for i := range each {
					if err := l.Post(uint32(i)); err != nil {
						once.Do(func() { t.Error(err) })
					}
				}
			}()
		}
		return nil
	})
	if err != nil || r.posted != posters*each {
		t.Errorf("%d posted, %v", r.posted, err)
	}
	if err := r.l.Post(1); err != nil {
		t.Errorf("posted after the end: %v", err)
	}
}

// A driver's refusal is the command's answer, and more commands than entries are submitted.
func TestLoopCommandsAreAnswered(t *testing.T) {
	const commands = 100
	f, err := os.Open("/dev/null") // whose driver takes any command and does nothing, or none
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := runTestLoop(t, commands, func(l *Loop, _ *recorder) error {
		if err := l.SetFile(int(f.Fd())); err != nil {
			return err
		}
		for i := range commands {
			l.Submit(&FileCommand{Tag: uint32(i), Op: 99})
		}
		l.Flush()
		return nil
	})
	if err != nil || len(r.answers) != commands {
		t.Fatalf("%d answers, %v", len(r.answers), err)
	}
	for _, res := range r.answers {
		if res != 0 && unix.Errno(-res) != unix.EOPNOTSUPP && unix.Errno(-res) != unix.EINVAL {
			t.Errorf("answer %d", res)
		}
	}
}

func TestLoopThatDoesNotBegin(t *testing.T) {
	want := errors.New("no")
	if _, err := runTestLoop(t, 1, func(*Loop, *recorder) error { return want }); !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
}
