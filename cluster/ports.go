package cluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// lowestPort is where the search for free ports begins.
	lowestPort = 10000
	// maxPortTries bounds the ports that are tried for one that is free.
	maxPortTries = 200
)

// freePorts finds n ports of host that nobody listens on. They lie below the
// range that the kernel takes for outgoing connections: a node that is dead for
// a while must find its port free, and whoever keeps dialling a dead port inside
// that range meets himself in the end (a TCP self-connect).
func freePorts(host string, n int) ([]int, error) {
	top := ephemeralLow()
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	ports := make([]int, 0, n)
	for try := 0; len(ports) < n; try++ {
		if try == maxPortTries+n {
			return nil, cfs.Errorf("find free ports on "+host, cfs.Busy, "%d tries were not enough", try)
		}
		port := 0 // any that the kernel likes, where there is nothing below its range
		if top > lowestPort {
			port = lowestPort + rand.IntN(top-lowestPort)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			continue
		}
		held = append(held, l) // held until all are found, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// ephemeralLow is the first port that the kernel gives to outgoing connections.
func ephemeralLow() int {
	const usual = 32768
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	low := 0
	if _, err := fmt.Sscan(string(raw), &low); err != nil {
		return usual
	}
	return low
}
