package wire

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// maxErrorText bounds each string of an error that travels, in bytes.
const maxErrorText = 1 << 10

// RemoteError is a failure that the other side answered with. It is inside the
// *cfs.Error of a call; errors.As finds it.
type RemoteError struct {
	Kind   cfs.Kind
	Op     string // what the server attempted
	Text   string
	Leader string // with cfs.NotLeader: the leader's HOST:PORT, if the server knows it
}

// Error is the server's own words.
func (e *RemoteError) Error() string {
	s := e.Text
	if s == "" {
		s = e.Kind.Error()
	}
	if e.Leader != "" {
		s += " (leader " + e.Leader + ")"
	}
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	return s
}

// Unwrap is the kind, so that errors.Is and cfs.KindOf see it.
func (e *RemoteError) Unwrap() error { return e.Kind }

// NotLeaderError is what a voter answers that does not lead; leader is the
// HOST:PORT of the one that does, "" if unknown.
func NotLeaderError(op, leader string) error {
	return cfs.E(op, cfs.NotLeader, &RemoteError{Kind: cfs.NotLeader, Leader: leader})
}

// errorToPB is err as the other side will see it.
func errorToPB(err error) *wirepb.Error {
	out := &wirepb.Error{Kind: uint32(cfs.KindOf(err))}
	var remote *RemoteError
	if errors.As(err, &remote) {
		out.Leader = clip(remote.Leader)
	}
	if errors.Is(err, context.Canceled) && cfs.KindOf(err) == cfs.IO {
		out.Kind = uint32(cfs.Canceled)
	}
	if errors.Is(err, context.DeadlineExceeded) && cfs.KindOf(err) == cfs.IO {
		out.Kind = uint32(cfs.Timeout)
	}
	if e, ok := err.(*cfs.Error); ok {
		out.Op = clip(e.Op)
		if e.Err == nil || e.Err == error(remote) {
			return out
		}
		out.Text = clip((&cfs.Error{Kind: e.Kind, Err: e.Err}).Error())
		return out
	}
	out.Text = clip(err.Error())
	return out
}

// errorFromPB is the error of a reply frame's body. A body that is no error is
// itself one.
func errorFromPB(body []byte) *RemoteError {
	var m wirepb.Error
	if err := proto.Unmarshal(body, &m); err != nil {
		return &RemoteError{Kind: cfs.BadRequest, Text: "error reply: " + err.Error()}
	}
	kind := cfs.Kind(m.Kind)
	if m.Kind == 0 || m.Kind > 255 {
		kind = cfs.BadRequest
	}
	return &RemoteError{Kind: kind, Op: clip(m.Op), Text: clip(m.Text), Leader: clip(m.Leader)}
}

// clip bounds s and makes it a string that protobuf accepts.
func clip(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	return validUTF8(s)
}

// contextError is why ctx ended, as kind Timeout or Canceled.
func contextError(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return cfs.E(op, cfs.Timeout, ctx.Err())
	}
	return cfs.E(op, cfs.Canceled, ctx.Err())
}
