package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo serves connections that give back what they get, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return ln.Addr().String()
}

func start(t *testing.T) (*Proxy, net.Conn) {
	t.Helper()
	p, err := New("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, c
}

func roundTrip(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	go c.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("other bytes came back")
	}
}

func TestForwards(t *testing.T) {
	_, c := start(t)
	roundTrip(t, c, bytes.Repeat([]byte("0123456789"), 1<<20))
	c.(*net.TCPConn).CloseWrite()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}

// A delay is a lower bound, so that a slow machine cannot fail this test.
func TestDelay(t *testing.T) {
	p, c := start(t)
	p.SetDelay(30*time.Millisecond, 40*time.Millisecond)
	begun := time.Now()
	roundTrip(t, c, []byte("x"))
	if took := time.Since(begun); took < 70*time.Millisecond {
		t.Errorf("a round trip with 30 ms and 40 ms of delay took %v", took)
	}
}

func TestCutAndHeal(t *testing.T) {
	p, c := start(t)
	roundTrip(t, c, []byte("before"))
	p.Cut()
	p.Cut() // twice is once
	if _, err := c.Write([]byte("during")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	got := make([]byte, 6)
	if _, err := c.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read through a cut: %v", err)
	}
	p.Heal()
	c.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "during" {
		t.Fatalf("after the cut: %q, %v", got, err)
	}
}

func TestDropAndClose(t *testing.T) {
	p, c := start(t)
	roundTrip(t, c, []byte("before"))
	p.Drop()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a dropped connection can be read")
	}
	again, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	roundTrip(t, again, []byte("after"))
	p.Cut()
	p.Close() // ends although it is cut
	p.Close()
	if _, err := net.Dial("tcp", p.Addr()); err == nil {
		t.Error("a closed proxy takes connections")
	}
}

func TestTargetThatIsDead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	p, err := New("127.0.0.1:0", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection to a dead target can be read")
	}
}
