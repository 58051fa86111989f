package fuse

import (
	"bytes"
	"os"
	"strings"
)

// mountEntry is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	dev    string // major:minor, as st_dev
	point  string
	fsType string
	source string
}

// isFUSE reports a mount that a daemon serves.
func (m *mountEntry) isFUSE() bool { return m.fsType == "fuse" || strings.HasPrefix(m.fsType, "fuse.") }

// mounts are those of this process's mount namespace, in the order in which they lie over each other.
func mounts() ([]mountEntry, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(text), nil
}

// parseMountinfo reads the lines that are understood and skips others; a later
// line of the same mount point lies over an earlier one.
func parseMountinfo(text []byte) []mountEntry {
	var entries []mountEntry
	for line := range bytes.Lines(text) {
		// 36 35 98:0 /root /point options [optional fields] - type source super-options
		fields := strings.Fields(string(line))
		if len(fields) < 6 {
			continue
		}
		for i, f := range fields[6:] {
			if f == "-" && 6+i+2 < len(fields) {
				entries = append(entries, mountEntry{
					dev: fields[2], point: unescapeMount(fields[4]),
					fsType: fields[6+i+1], source: unescapeMount(fields[6+i+2]),
				})
				break
			}
		}
	}
	return entries
}

// unescapeMount undoes the kernel's \ooo for blanks and backslashes.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// mountedBelow reports that something is mounted on a directory of what lies on top at a mount point.
func mountedBelow(entries []mountEntry, point string) bool {
	below := false
	for _, m := range entries { // what was mounted before is covered
		below = m.point != point && (below || strings.HasPrefix(m.point, point+"/"))
	}
	return below
}

// mountedAt finds what lies on top at a mount point.
func mountedAt(point string) (mountEntry, bool, error) {
	entries, err := mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].point == point {
			return entries[i], true, nil
		}
	}
	return mountEntry{}, false, nil
}
