package raftmeta

import (
	"errors"
	"os"
	"path/filepath"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
	"github.com/claudefs/claudefs/raftmeta/fsm"
	"github.com/claudefs/claudefs/raftmeta/kv"
)

const (
	// bulkTerm is the term of the log position that a state made in bulk begins with.
	bulkTerm = 1
	// bulkRows bounds a batch of the store.
	bulkRows = 8 << 10
)

// BulkLoad makes the state of all voters of a new cluster with a large namespace in
// it, as if each had installed a snapshot of it: voter i's Config.Dir is dirs[i], which
// has no state yet. Their tables are the same files where the file system has links.
func BulkLoad(dirs []string, clusterID string, tree fsm.BulkTree) error {
	if len(dirs) == 0 {
		return cfs.Errorf("load a namespace", cfs.Usage, "no directory given")
	}
	cur := &current{kv: kvName(1), index: 1, term: bulkTerm, conf: &pb.ConfState{}}
	for i, dir := range dirs {
		cur.conf.Voters = append(cur.conf.Voters, uint64(i+1))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return cfs.E("load "+dir, cfs.KindOf(err), err)
		}
		if have, err := readCurrent(dir); err != nil || have != nil {
			return errors.Join(err, cfs.Errorf("load "+dir, cfs.Exists, "it has a state"))
		}
	}
	store, err := kv.OpenPebble(filepath.Join(dirs[0], cur.kv), kv.Options{})
	if err != nil {
		return err
	}
	err = fillBulk(store, clusterID, tree)
	for _, dir := range dirs[1:] {
		if err == nil {
			err = store.Checkpoint(filepath.Join(dir, cur.kv))
		}
	}
	if err == nil {
		err = store.Flush()
	}
	if err = errors.Join(err, store.Close()); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := durable.SyncDir(dir); err != nil {
			return cfs.E("load "+dir, cfs.KindOf(err), err)
		}
		if err := writeCurrent(dir, cur); err != nil {
			return err
		}
	}
	return nil
}

// fillBulk writes the tree in batches.
func fillBulk(store kv.Store, clusterID string, tree fsm.BulkTree) error {
	b := store.NewBatch()
	rows := 0
	next := func() error {
		err := errors.Join(b.Commit(), b.Close())
		b, rows = store.NewBatch(), 0
		return err
	}
	err := fsm.Bootstrap(b, clusterID, 0)
	if err == nil {
		err = next()
	}
	if err == nil {
		v := store.View()
		err = fsm.BulkLoad(v, tree, func(key, val []byte) error {
			if rows++; rows > bulkRows {
				if err := next(); err != nil {
					return err
				}
			}
			return b.Set(key, val)
		})
		err = errors.Join(err, v.Close())
	}
	if err == nil {
		err = b.Commit()
	}
	return errors.Join(err, b.Close())
}
