package mountspec

import (
	"strings"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/node"
)

const unixSource = "unix:"

// ParseSource reads HOST:PORT[,HOST:PORT..]:/[PATH], where an address of IPv6 is in brackets and a server may be
// unix:PATH.
func ParseSource(source string) (servers []string, path string, err error) {
	rest := source
	for {
		end := serverEnd(rest)
		servers = append(servers, rest[:end])
		rest = rest[end:]
		if strings.HasPrefix(rest, ":/") {
			break
		}
		if !strings.HasPrefix(rest, ",") {
			return nil, "", cfs.Errorf("source "+source, cfs.Usage, "want HOST:PORT[,HOST:PORT..]:/[PATH]")
		}
		rest = rest[1:]
	}
	for _, s := range servers {
		if strings.HasPrefix(s, unixSource) && s != unixSource {
			continue
		}
		if err := node.CheckAddr("source "+source, s); err != nil {
			return nil, "", err
		}
	}
	return servers, rest[1:], nil
}

// serverEnd is where a list of servers has the end of its first.
func serverEnd(list string) int {
	from := 0 // what is before is part of the server, whatever it is
	switch {
	case strings.HasPrefix(list, unixSource):
		from = len(unixSource)
	case strings.HasPrefix(list, "["):
		from = max(strings.IndexByte(list, ']'), 0)
	}
	for i := from; i < len(list); i++ {
		if list[i] == ',' || strings.HasPrefix(list[i:], ":/") {
			return i
		}
	}
	return len(list)
}
