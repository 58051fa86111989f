package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/claudefs/claudefs/cfs"
)

// Version is the frame format that this package speaks.
const Version = 1

// Sizes of a frame, in bytes. A length in a header is checked against these
// before memory is taken for it.
const (
	// HeaderSize is the size of a frame's header.
	HeaderSize = 48
	// MaxBody bounds the protobuf body of a frame.
	MaxBody = 4 << 20
	// MaxPayload bounds the raw payload of a frame.
	MaxPayload = 4 << 20
)

const frameMagic = 0x57534643 // "CFSW" in the order of the bytes

// Flags of a header.
const (
	flagReply  = 1 << iota // the answer to the request of the same id
	flagError              // with flagReply: the body is a wirepb.Error
	flagCancel             // the caller of the request of this id has given up
	flagOneWay             // nobody waits for a reply, and none is sent
	flagsKnown = flagReply | flagError | flagCancel | flagOneWay
)

// Op is what a frame asks for. The numbers are stable.
type Op uint8

// The operations; the comments name the bodies of request and reply in wirepb.
const (
	OpHello        Op = iota + 1 // Hello, Hello: the first frame in both directions
	OpPing                       // Empty, Empty: answered by the server's connection itself
	OpPutShard                   // PutShard with payload, Empty
	OpGetShard                   // GetShard, GetShardReply with payload
	OpDeleteShards               // DeleteShards, Empty
	OpListShards                 // ListShards, ListShardsReply
	OpCommand                    // Command, Reply
	OpQuery                      // Query, Answer
	OpHeartbeat                  // Heartbeat, HeartbeatReply
	OpStatus                     // Empty, StatusReply
	OpRaft                       // Raft; one-way
	OpSnapshot                   // Snapshot with payload, Empty
	OpAdmin                      // Admin, AdminReply
	OpInspect                    // Empty, InspectReply
	OpReportShard                // ReportShard, Empty
	OpCheckState                 // Empty, CheckReply
	OpWatch                      // Watch, WatchReply: waits for recalls of a session's leases
	OpWaitLock                   // WaitLock, Empty: waits until a lock may be free
	OpTop                        // Empty, TopReply
	OpEnrol                      // Enrol, EnrolReply

	opEnd
)

var opNames = [opEnd]string{
	OpHello: "hello", OpPing: "ping",
	OpPutShard: "put_shard", OpGetShard: "get_shard", OpDeleteShards: "delete_shards", OpListShards: "list_shards",
	OpCommand: "command", OpQuery: "query", OpHeartbeat: "heartbeat", OpStatus: "status",
	OpRaft: "raft", OpSnapshot: "snapshot",
	OpAdmin: "admin", OpInspect: "inspect", OpReportShard: "report_shard", OpCheckState: "check_state",
	OpWatch: "watch", OpWaitLock: "wait_lock", OpTop: "top", OpEnrol: "enrol",
}

// String is the operation's name in errors and metric labels.
func (o Op) String() string {
	if o == 0 || o >= opEnd {
		return fmt.Sprintf("op_%d", uint8(o))
	}
	return opNames[o]
}

// header is the fixed part of a frame.
type header struct {
	op         Op
	flags      uint16
	id         uint64 // 0: the connection itself (hello, and errors that end it)
	trace      uint64
	timeoutMS  uint32 // 0: no deadline
	bodyLen    uint32
	payloadLen uint32
	bodyCRC    uint32 // CRC32C of the body; payloads carry their own checksums in the body, end to end
}

// Offsets of the header's fields, little-endian.
const (
	offMagic      = 0
	offVersion    = 4
	offOp         = 5
	offFlags      = 6
	offID         = 8
	offTrace      = 16
	offTimeout    = 24
	offBodyLen    = 28
	offPayloadLen = 32
	offBodyCRC    = 36
	offReserved   = 40
	offHeaderCRC  = 44
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes the header into the first HeaderSize bytes of b.
func (h *header) encode(b []byte) {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(b[offMagic:], frameMagic)
	b[offVersion] = Version
	b[offOp] = byte(h.op)
	le.PutUint16(b[offFlags:], h.flags)
	le.PutUint64(b[offID:], h.id)
	le.PutUint64(b[offTrace:], h.trace)
	le.PutUint32(b[offTimeout:], h.timeoutMS)
	le.PutUint32(b[offBodyLen:], h.bodyLen)
	le.PutUint32(b[offPayloadLen:], h.payloadLen)
	le.PutUint32(b[offBodyCRC:], h.bodyCRC)
	le.PutUint32(b[offReserved:], 0)
	le.PutUint32(b[offHeaderCRC:], crc32.Checksum(b[:offHeaderCRC], castagnoli))
}

// fault is what is wrong with a frame: the field and where in the frame it is.
type fault struct {
	kind  cfs.Kind
	field string
	off   int // from the frame's first byte
	text  string
}

// decode reads the header from the first HeaderSize bytes of b; nil when all is well.
func (h *header) decode(b []byte) *fault {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	if v := le.Uint32(b[offMagic:]); v != frameMagic {
		return &fault{cfs.BadRequest, "magic", offMagic, fmt.Sprintf("%#08x, want %#08x: the peer does not speak this protocol", v, uint32(frameMagic))}
	}
	if v := b[offVersion]; v != Version {
		return &fault{cfs.Unsupported, "version", offVersion, fmt.Sprintf("%d, this side speaks %d", v, Version)}
	}
	if got, want := le.Uint32(b[offHeaderCRC:]), crc32.Checksum(b[:offHeaderCRC], castagnoli); got != want {
		return &fault{cfs.Corrupt, "header CRC", offHeaderCRC, fmt.Sprintf("%#08x, computed %#08x", got, want)}
	}
	*h = header{
		op:         Op(b[offOp]),
		flags:      le.Uint16(b[offFlags:]),
		id:         le.Uint64(b[offID:]),
		trace:      le.Uint64(b[offTrace:]),
		timeoutMS:  le.Uint32(b[offTimeout:]),
		bodyLen:    le.Uint32(b[offBodyLen:]),
		payloadLen: le.Uint32(b[offPayloadLen:]),
		bodyCRC:    le.Uint32(b[offBodyCRC:]),
	}
	return h.check(le.Uint32(b[offReserved:]))
}

// check refuses what an intact header may not say.
func (h *header) check(reserved uint32) *fault {
	switch {
	case h.op == 0:
		return &fault{cfs.BadRequest, "op", offOp, "0 is no operation"}
	case h.flags&^uint16(flagsKnown) != 0:
		return &fault{cfs.BadRequest, "flags", offFlags, fmt.Sprintf("%#x has unknown bits", h.flags)}
	case h.flags&flagError != 0 && h.flags&flagReply == 0:
		return &fault{cfs.BadRequest, "flags", offFlags, "an error that is no reply"}
	case h.flags&flagCancel != 0 && (h.flags != flagCancel || h.bodyLen|h.payloadLen != 0):
		return &fault{cfs.BadRequest, "flags", offFlags, "a cancellation with something else"}
	case h.flags&flagOneWay != 0 && (h.flags != flagOneWay || h.id|uint64(h.timeoutMS)|uint64(h.payloadLen) != 0):
		return &fault{cfs.BadRequest, "flags", offFlags, "a one-way frame with something else"}
	case h.bodyLen > MaxBody:
		return &fault{cfs.BadRequest, "body length", offBodyLen, fmt.Sprintf("%d, at most %d", h.bodyLen, MaxBody)}
	case h.payloadLen > MaxPayload:
		return &fault{cfs.BadRequest, "payload length", offPayloadLen, fmt.Sprintf("%d, at most %d", h.payloadLen, MaxPayload)}
	case reserved != 0:
		return &fault{cfs.BadRequest, "reserved", offReserved, fmt.Sprintf("%#x, want 0", reserved)}
	}
	return nil
}
