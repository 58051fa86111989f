package cli

import (
	"strings"

	"github.com/pkg/profile"
)

// ProfileHelp says what --profile takes.
const ProfileHelp = "cpu, mem, block or trace"

// Profile is what a command's --profile asks for; the zero Profile is none.
type Profile struct {
	mode func(*profile.Profile)
}

// NewProfile reads the flag's value, which is empty for none.
func NewProfile(kind string) (Profile, error) {
	switch strings.ToLower(kind) {
	case "":
		return Profile{}, nil
	case "cpu":
		return Profile{profile.CPUProfile}, nil
	case "mem":
		return Profile{profile.MemProfile}, nil
	case "block":
		return Profile{profile.BlockProfile}, nil
	case "trace":
		return Profile{profile.TraceProfile}, nil
	}
	return Profile{}, Usage("--profile", "%q is none of cpu, mem, block, trace", kind)
}

// Wanted reports that there is something to profile.
func (p Profile) Wanted() bool { return p.mode != nil }

// Start profiles until stop is called, which writes the profile into dir.
func (p Profile) Start(dir string) (stop func()) {
	if p.mode == nil {
		return func() {}
	}
	return profile.Start(p.mode, profile.ProfilePath(dir), profile.NoShutdownHook, profile.Quiet).Stop
}
