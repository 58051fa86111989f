package wire

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

// peerTimeout bounds how long a peer may be silent in the middle of a frame,
// take nothing of what is written to it, or leave data unacknowledged (the
// whole host is gone), before its connection is given up.
const peerTimeout = 5 * time.Second

// Keepalive of idle TCP connections: a vanished host is noticed after about peerTimeout.
const (
	keepIdle     = 2 * time.Second
	keepInterval = time.Second
	keepCount    = 3
)

// unixBufferBytes is the socket buffer of unix sockets, which have no automatic
// tuning: a whole shard at a time. TCP is left to the kernel's tuning, which a
// fixed size would turn off.
const unixBufferBytes = 1 << 20

const unixPrefix = "unix:"

// Listen listens on addr, "HOST:PORT" or "unix:/path". An address that is in use is
// cfs.Busy, one that makes no sense cfs.Usage; both name it. A socket file that
// a dead process has left is replaced.
func Listen(addr string) (net.Listener, error) {
	op := "listen on " + addr
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	path, isUnix := strings.CutPrefix(addr, unixPrefix)
	if !isUnix {
		if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
			return nil, cfs.E(op, cfs.Usage, err)
		}
		ln, err := lc.Listen(context.Background(), "tcp", addr)
		return ln, listenError(op, err)
	}
	if path == "" {
		return nil, cfs.Errorf(op, cfs.Usage, "no path after %q", unixPrefix)
	}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandonedSocket(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, listenError(op, err)
		}
		ln, err = lc.Listen(context.Background(), "unix", path)
	}
	return ln, listenError(op, err)
}

// listenError classifies err; it returns a plain nil for nil.
func listenError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return cfs.Errorf(op, cfs.Busy, "address already in use")
	}
	return cfs.E(op, cfs.KindOf(err), err)
}

// abandonedSocket reports a socket file that nobody listens on.
func abandonedSocket(path string) bool {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// dial connects to addr, "HOST:PORT" or "unix:/path". Whatever goes wrong but
// the end of ctx is cfs.Unavailable.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive()}
	network, target := "tcp", addr
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		network, target = "unix", path
	}
	nc, err := d.DialContext(ctx, network, target)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, contextError(ctx, "connect to "+addr)
	case err != nil:
		return nil, cfs.E("connect to "+addr, cfs.Unavailable, err)
	}
	tune(nc)
	return nc, nil
}

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount}
}

// tune sets a new connection's options, on both sides. Where the kernel refuses
// one the connection works all the same.
func tune(nc net.Conn) {
	switch c := nc.(type) {
	case *net.TCPConn:
		c.SetNoDelay(true)
		if rc, err := c.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout.Milliseconds()))
			})
		}
	case *net.UnixConn:
		c.SetReadBuffer(unixBufferBytes)
		c.SetWriteBuffer(unixBufferBytes)
	}
}

// hungUp reports that the peer has closed its side, though unread data may be before it.
func hungUp(nc net.Conn) bool {
	sc, ok := socketOf(nc).(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{Events: unix.POLLRDHUP}}
	err = rc.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		unix.Poll(fds, 0)
	})
	return err != nil || fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// peerAddr is how errors and logs call the other side of an accepted connection.
func peerAddr(nc net.Conn) string {
	a := nc.RemoteAddr()
	if a == nil {
		return "unknown"
	}
	if a.Network() == "unix" {
		return unixPrefix + a.String()
	}
	return a.String()
}
