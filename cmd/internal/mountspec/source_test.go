package mountspec

import (
	"slices"
	"strings"
	"testing"

	"github.com/claudefs/claudefs/cfs"
)

func TestParseSource(t *testing.T) {
	for _, c := range []struct {
		source, path string
		servers      []string
	}{
		{"host:9400:/", "/", []string{"host:9400"}},
		{"host:9400:/a/b:c", "/a/b:c", []string{"host:9400"}},
		{"a:1,b:2,c:3:/x", "/x", []string{"a:1", "b:2", "c:3"}},
		{"[::1]:9400:/", "/", []string{"[::1]:9400"}},
		{"[fe80::1%eth0]:9400,[::2]:1:/d,e:/", "/d,e:/", []string{"[fe80::1%eth0]:9400", "[::2]:1"}},
		{"unix:/run/cfs/node.sock:/sub", "/sub", []string{"unix:/run/cfs/node.sock"}},
	} {
		servers, path, err := ParseSource(c.source)
		if err != nil || path != c.path || !slices.Equal(servers, c.servers) {
			t.Errorf("%s: %q, %q, %v", c.source, servers, path, err)
		}
	}
	for _, source := range []string{"", "/", ":/", "host:/", "host:9400", "host:9400:", "host:9400:x", ",:/", "a:1,:/", "a:1,,b:2:/", "[::1]:/", "[::1:9400:/", "unix::/x", "host:port:/", "unix:"} {
		if servers, path, err := ParseSource(source); cfs.KindOf(err) != cfs.Usage || source != "" && !strings.Contains(err.Error(), source) {
			t.Errorf("%q: %q, %q, %v", source, servers, path, err)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"host:9400:/", "a:1,b:2:/x", "[::1]:9400:/", "unix:/s,unix:/t:/", "[", "unix:", ":/,:/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		servers, path, err := ParseSource(source)
		if err == nil && (strings.Join(servers, ",")+":"+path != source || !strings.HasPrefix(path, "/")) {
			t.Errorf("%q is %q and %q", source, servers, path)
		}
	})
}
