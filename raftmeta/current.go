package raftmeta

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/raftmeta/wal"
)

const (
	currentName   = "CURRENT"
	currentHeader = "claudefs-state 1"
	kvPrefix      = "kv-"
	walName       = "wal"
	lockName      = "LOCK"
)

// HasState reports that a directory has a replica's state or log, or a part of them.
func HasState(dir string) (bool, error) {
	for _, name := range []string{currentName, walName} {
		_, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, cfs.E("look into "+dir, cfs.KindOf(err), err)
		}
	}
	return false, nil
}

// current names the valid state directory and the log position that it began
// with: a snapshot's, or 0. After a crash between the switch and the log's
// record of it, the start finds the position here and completes the log.
type current struct {
	kv    string // kv-N
	index uint64
	term  uint64
	conf  *pb.ConfState
}

func (c *current) encode() []byte {
	body := fmt.Sprintf("%s\nkv %s\nindex %d\nterm %d\nconf %s\n", currentHeader, c.kv, c.index, c.term, hex.EncodeToString(wal.EncodeConf(c.conf)))
	return fmt.Appendf(nil, "%scrc %08x\n", body, crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)))
}

func decodeCurrent(b []byte) (*current, error) {
	body, crc, ok := strings.Cut(string(b), "crc ")
	var sum uint32
	if _, err := fmt.Sscanf(crc, "%08x\n", &sum); !ok || err != nil || sum != crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)) {
		return nil, errors.New("checksum does not match")
	}
	if !strings.HasPrefix(body, currentHeader+"\n") {
		return nil, errors.New("unknown version")
	}
	var c current
	var conf string
	if _, err := fmt.Sscanf(body[len(currentHeader)+1:], "kv %s\nindex %d\nterm %d\nconf %s\n", &c.kv, &c.index, &c.term, &conf); err != nil {
		return nil, err
	}
	if !isKVName(c.kv) {
		return nil, fmt.Errorf("state directory %q", c.kv)
	}
	raw, err := hex.DecodeString(conf)
	if err != nil {
		return nil, err
	}
	c.conf, err = wal.DecodeConf(raw)
	return &c, err
}

func kvName(n int) string { return fmt.Sprintf("%s%d", kvPrefix, n) }

func isKVName(s string) bool {
	var n int
	_, err := fmt.Sscanf(s, kvPrefix+"%d", &n)
	return err == nil && n > 0 && kvName(n) == s
}

// readCurrent returns nil when there is none.
func readCurrent(dir string) (*current, error) {
	path := filepath.Join(dir, currentName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, cfs.E("read "+path, cfs.KindOf(err), err)
	}
	c, err := decodeCurrent(b)
	if err != nil {
		return nil, cfs.E("read "+path, cfs.Corrupt, err)
	}
	return c, nil
}

// writeCurrent switches to c, durably and at once.
func writeCurrent(dir string, c *current) error {
	return replaceFile(filepath.Join(dir, currentName), c.encode())
}

// replaceFile writes a file durably and at once.
func replaceFile(path string, content []byte) error {
	if err := durable.Replace(path, content); err != nil {
		return cfs.E("write "+path, cfs.KindOf(err), err)
	}
	return nil
}

// nextKV is a name that no state directory in dir has.
func nextKV(dir string) (string, error) {
	for n := 1; ; n++ {
		_, err := os.Lstat(filepath.Join(dir, kvName(n)))
		if errors.Is(err, fs.ErrNotExist) {
			return kvName(n), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// removeOtherKVs removes what interrupted or replaced snapshots have left.
func removeOtherKVs(dir, keep string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		if isKVName(e.Name()) && e.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// lockDir takes the directory for this process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cfs.E("lock "+dir, cfs.KindOf(err), err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, cfs.Errorf("lock "+dir, cfs.Busy, "in use by another process: %w", err)
	}
	return f, nil
}
