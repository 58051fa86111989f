package nvme

import (
	"bytes"
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// The state of a device is one block in two slots, written in turn behind the
// bitmaps that belong to it.
const (
	stateMagic = "CFSSTATE"
	stateSlots = 2
)

// deviceState is what a device remembers beside its records.
type deviceState struct {
	generation   uint64 // rises with every writing; its lowest bit is the slot
	feedPosition uint64 // the bitmaps omit what the delete feed named up to here
}

// stateOffset is where a generation's slot lies: behind the first superblock.
func stateOffset(generation uint64) int64 {
	return cfs.BlockSize * (1 + int64(generation%stateSlots))
}

// encodeState fills a block for its slot.
func encodeState(blk []byte, uuid cfs.UUID, st *deviceState) {
	le := binary.LittleEndian
	clear(blk)
	copy(blk, stateMagic)
	le.PutUint16(blk[8:], logVersion)
	copy(blk[16:32], uuid[:])
	le.PutUint64(blk[32:], st.generation)
	le.PutUint64(blk[40:], st.feedPosition)
	sealBlock(blk, stateOffset(st.generation))
}

// decodeState reads a block from device offset off. NotFound when it is no
// state of this formatting, Corrupt when it is a damaged one.
func decodeState(blk []byte, uuid cfs.UUID, off int64) (deviceState, error) {
	le := binary.LittleEndian
	if len(blk) < cfs.BlockSize || !bytes.HasPrefix(blk, []byte(stateMagic)) || cfs.UUID(blk[16:32]) != uuid {
		return deviceState{}, cfs.NotFound
	}
	st := deviceState{generation: le.Uint64(blk[32:]), feedPosition: le.Uint64(blk[40:])}
	switch {
	case !blockSealed(blk, off):
		return deviceState{}, cfs.Errorf("device state", cfs.Corrupt, "at %d: checksum does not match", off)
	case le.Uint16(blk[8:]) != logVersion:
		return deviceState{}, cfs.Errorf("device state", cfs.Corrupt, "at %d: version %d, this program knows %d", off, le.Uint16(blk[8:]), logVersion)
	case stateOffset(st.generation) != off:
		return deviceState{}, cfs.Errorf("device state", cfs.Corrupt, "at %d: generation %d belongs elsewhere", off, st.generation)
	}
	return st, nil
}
