package wire

import (
	"context"
	"fmt"
	"math"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// Feature bits of a hello. A side refuses a peer that lacks one of requiredFeatures;
// later bits say what may be used when both sides have them.
const (
	// FeatureBase is the operations OpHello to OpSnapshot.
	FeatureBase uint64 = 1 << iota
	// FeatureOneWay is one-way frames, in which OpRaft comes.
	FeatureOneWay

	features         = FeatureBase | FeatureOneWay
	requiredFeatures = features
)

// maxHello bounds the body of a hello: a stranger gets no more memory than this, in bytes.
const maxHello = 4 << 10

// maxHelloName bounds each string of a hello, in bytes.
const maxHelloName = 255

// Identity is what a side tells of itself when a connection is made.
type Identity struct {
	ClusterID string // "" from a client that takes any cluster
	NodeID    cfs.NodeID
	Name      string // for logs: a host name or a mount point
}

// Peer is the other side of a connection.
type Peer struct {
	NodeID    cfs.NodeID // 0: a client
	ClusterID string
	Name      string
	Addr      string
	Features  uint64 // bits that both sides have

	// Of the certificate, or of the process at the other end of a unix socket.
	Role      cfs.Role
	Key       string     // the id of the certificate's key, "" without one
	Certified cfs.NodeID // the server that the certificate is of, 0 for none

	maxInFlight int // of a server
}

// String is the form for logs and errors: the address, and who says to be there.
func (p *Peer) String() string {
	if p.Name == "" {
		return p.Addr
	}
	return fmt.Sprintf("%s (%s)", p.Addr, p.Name)
}

// helloToPB is id as a message; maxInFlight is 0 from a client.
func helloToPB(id Identity, maxInFlight int) *wirepb.Hello {
	return &wirepb.Hello{
		ClusterId: id.ClusterID, NodeId: uint32(id.NodeID), Features: features,
		Name: validUTF8(id.Name[:min(len(id.Name), maxHelloName/2)]), MaxInFlight: uint32(maxInFlight),
	}
}

// helloFromPB checks a hello from addr against this side's identity.
func helloFromPB(body []byte, own Identity, addr string) (*Peer, error) {
	op := "hello from " + addr
	var m wirepb.Hello
	if err := proto.Unmarshal(body, &m); err != nil {
		return nil, cfs.E(op, cfs.BadRequest, err)
	}
	switch {
	case m.NodeId > math.MaxUint16:
		return nil, cfs.Errorf(op, cfs.BadRequest, "node id %d", m.NodeId)
	case len(m.ClusterId) > maxHelloName || len(m.Name) > maxHelloName:
		return nil, cfs.Errorf(op, cfs.BadRequest, "name of more than %d bytes", maxHelloName)
	case m.ClusterId != "" && own.ClusterID != "" && m.ClusterId != own.ClusterID:
		return nil, cfs.Errorf(op, cfs.WrongCluster, "it belongs to cluster %q, this side to %q", m.ClusterId, own.ClusterID)
	case m.Features&requiredFeatures != requiredFeatures:
		return nil, cfs.Errorf(op, cfs.Unsupported, "it lacks feature bits %#x", requiredFeatures&^m.Features)
	}
	p := &Peer{
		NodeID: cfs.NodeID(m.NodeId), ClusterID: m.ClusterId, Name: m.Name, Addr: addr,
		Features: m.Features & features, maxInFlight: int(min(m.MaxInFlight, maxPending)),
	}
	if p.maxInFlight == 0 {
		p.maxInFlight = defaultInFlight
	}
	return p, nil
}

// readHello reads the body of the first frame of either side.
func readHello(r *frameReader, wantFlags uint16) ([]byte, error) {
	var h header
	if err := r.next(&h); err != nil {
		return nil, err
	}
	if h.op != OpHello || h.id != 0 || h.flags&^flagError != wantFlags || h.payloadLen != 0 {
		return nil, r.refuse("op", fmt.Sprintf("%s with flags %#x where a hello was due", h.op, h.flags))
	}
	if h.bodyLen > maxHello {
		return nil, r.refuse("body length", fmt.Sprintf("%d for a hello, at most %d", h.bodyLen, maxHello))
	}
	body := make([]byte, h.bodyLen)
	if err := r.body(body, &h); err != nil {
		return nil, err
	}
	if h.flags&flagError != 0 {
		return nil, errorFromPB(body)
	}
	return body, nil
}

// connFrame is a frame of the connection itself, as bytes.
func connFrame(op Op, flags uint16, body proto.Message) ([]byte, error) {
	var frames framePool
	f, h, err := frames.make(body, nil)
	if err != nil {
		return nil, err
	}
	h.op, h.flags = op, flags
	h.encode(f.buf)
	return f.buf, nil
}

// greet is the client's side of the hello, within ctx.
func greet(ctx context.Context, nc net.Conn, r *frameReader, own Identity) (*Peer, error) {
	frame, err := connFrame(OpHello, 0, helloToPB(own, 0))
	if err != nil {
		return nil, err
	}
	r.fixed = true
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	peer, err := func() (*Peer, error) {
		if _, err := nc.Write(frame); err != nil {
			return nil, err
		}
		body, err := readHello(r, flagReply)
		if err != nil {
			return nil, err
		}
		return helloFromPB(body, own, r.peer)
	}()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	nc.SetDeadline(time.Time{})
	r.fixed = false
	return peer, err
}
