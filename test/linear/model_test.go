package linear

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// names is how many names a directory of the workload has.
const names = 4

// action is what a client asks for.
type action int

const (
	actCreate  action = iota // makes a file with a tag; an existing name is an error
	actUnlink                // removes a name
	actLink                  // gives the file with a tag another name
	actRename                // moves a name
	actLookup                // asks for the tag behind a name
	actReadDir               // asks for all names and tags
	actSet                   // gives a register a value
	actGet                   // asks for it
	actLock                  // takes a lock if it is free
	actUnlock                // gives it back
)

var actionNames = [...]string{"create", "unlink", "link", "rename", "lookup", "readdir", "set", "get", "lock", "unlock"}

// input is one request. World and part tell apart what is independent of each other.
type input struct {
	World int
	Part  string // "dir", "mtime", "bytes", "lock"
	Act   action
	Name  int    // index of a name
	To    int    // of the second one
	Value uint64 // tag of a file, value of a register, owner of a lock
}

// outcome is how a request ended.
type outcome int

const (
	done    outcome = iota
	missing         // no such name
	exists
	busy    // a lock is in the way
	unknown // the client was not told
)

type output struct {
	Outcome outcome
	Value   uint64        // tag or value
	Listing [names]uint64 // tags by name, 0 for none
}

// dirState is the tags behind the names, 0 for none.
type dirState [names]uint64

func (s dirState) has(tag uint64) bool { return tag != 0 && slices.Contains(s[:], tag) }

// directory is the model of a directory whose files are told apart by tags.
func directory() porcupine.Model {
	return porcupine.Model{
		Init:              func() any { return dirState{} },
		Step:              func(state, in, out any) (bool, any) { return stepDir(state.(dirState), in.(input), out.(output)) },
		DescribeOperation: describe,
		DescribeState:     func(s any) string { return fmt.Sprint(s) },
	}
}

// stepDir says whether a directory may answer so, and what it is after it.
func stepDir(s dirState, in input, out output) (bool, dirState) {
	want := output{}
	next := s
	switch in.Act {
	case actCreate:
		if s[in.Name] != 0 {
			want.Outcome = exists
		} else {
			next[in.Name] = in.Value
		}
	case actUnlink:
		if s[in.Name] == 0 {
			want.Outcome = missing
		}
		next[in.Name] = 0
	case actLink:
		switch {
		case !s.has(in.Value) && s[in.To] != 0 && out.Outcome == exists:
			want.Outcome = exists // somebody has the file open still: which is said first is nobody's right
		case !s.has(in.Value):
			want.Outcome = missing
		case s[in.To] != 0:
			want.Outcome = exists
		default:
			next[in.To] = in.Value
		}
	case actRename:
		switch {
		case s[in.Name] == 0:
			want.Outcome = missing
		case s[in.Name] == s[in.To]: // two names of one file: nothing happens
		default:
			next[in.To], next[in.Name] = s[in.Name], 0
		}
	case actLookup:
		if want.Value = s[in.Name]; want.Value == 0 {
			want.Outcome = missing
		}
	case actReadDir:
		want.Listing = s
	}
	return out.Outcome == unknown || out == want, next
}

// register is the model of one value.
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return uint64(0) },
		Step: func(state, in, out any) (bool, any) {
			i, o := in.(input), out.(output)
			if i.Act == actSet {
				return o.Outcome == done || o.Outcome == unknown, i.Value
			}
			return o.Outcome == unknown || o.Outcome == done && o.Value == state.(uint64), state
		},
		DescribeOperation: describe,
		DescribeState:     func(s any) string { return fmt.Sprint(s) },
	}
}

// lock is the model of a lock that is tried, not waited for. The state is its owner.
func lock() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return uint64(0) },
		Step: func(state, in, out any) (bool, any) {
			i, o, owner := in.(input), out.(output), state.(uint64)
			free := owner == 0 || owner == i.Value
			switch {
			case i.Act == actUnlock && owner == i.Value:
				return o.Outcome == done || o.Outcome == unknown, uint64(0)
			case i.Act == actUnlock:
				return o.Outcome == done || o.Outcome == unknown, owner
			case o.Outcome == busy:
				return !free, owner
			case free:
				return true, i.Value
			}
			return o.Outcome == unknown, owner
		},
		DescribeOperation: describe,
		DescribeState:     func(s any) string { return fmt.Sprint(s) },
	}
}

func describe(in, out any) string {
	i, o := in.(input), out.(output)
	text := fmt.Sprintf("%s(%d,%d,%d)", actionNames[i.Act], i.Name, i.To, i.Value)
	switch o.Outcome {
	case missing:
		return text + " missing"
	case exists:
		return text + " exists"
	case busy:
		return text + " busy"
	case unknown:
		return text + " ?"
	}
	if i.Act == actReadDir {
		return fmt.Sprint(text, " ", o.Listing)
	}
	return fmt.Sprint(text, " ", o.Value)
}

// models are what the parts of a world are.
func modelOf(part string) porcupine.Model {
	switch {
	case part == "dir":
		return directory()
	case part == "lock":
		return lock()
	}
	return register()
}

// parts splits a history into those of independent things.
func parts(history []porcupine.Operation) map[string][]porcupine.Operation {
	all := map[string][]porcupine.Operation{}
	for _, o := range history {
		i := o.Input.(input)
		key := fmt.Sprintf("%d/%s", i.World, i.Part)
		all[key] = append(all[key], o)
	}
	return all
}

// inOrder are the parts' keys, sorted.
func inOrder(all map[string][]porcupine.Operation) []string { return slices.Sorted(maps.Keys(all)) }

func partOf(key string) string { return key[strings.IndexByte(key, '/')+1:] }
