package raftmeta

import (
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// An entry's data: version u8, proposing node u16, token u64, stamp i64 (ns),
// all little-endian, then the command as wirepb.Command. The node and its token
// tell the proposer which of its waiters the entry belongs to.
const (
	entryVersion     = 1
	entryHeaderBytes = 19
)

// entry is a decoded entry; body lies in its data.
type entry struct {
	node    cfs.NodeID
	token   uint64
	stampNS int64
	body    []byte
}

func encodeEntry(e entry) []byte {
	b := make([]byte, 0, entryHeaderBytes+len(e.body))
	b = append(b, entryVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(e.node))
	b = binary.LittleEndian.AppendUint64(b, e.token)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.stampNS))
	return append(b, e.body...)
}

func decodeEntry(data []byte) (entry, error) {
	if len(data) < entryHeaderBytes {
		return entry{}, cfs.Errorf("decode log entry", cfs.Corrupt, "%d bytes, its header has %d", len(data), entryHeaderBytes)
	}
	if data[0] != entryVersion {
		return entry{}, cfs.Errorf("decode log entry", cfs.Unsupported, "version %d, this program knows %d", data[0], entryVersion)
	}
	return entry{
		node:    cfs.NodeID(binary.LittleEndian.Uint16(data[1:])),
		token:   binary.LittleEndian.Uint64(data[3:]),
		stampNS: int64(binary.LittleEndian.Uint64(data[11:])),
		body:    data[entryHeaderBytes:],
	}, nil
}

func (e entry) command() (*cfs.Command, error) {
	var m wirepb.Command
	if err := proto.Unmarshal(e.body, &m); err != nil {
		return nil, cfs.E("decode log entry", cfs.Corrupt, err)
	}
	return wire.CommandFromPB(&m)
}
