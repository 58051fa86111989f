package node

import (
	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
)

// roles is a set of them.
type roles uint8

const (
	anybody  roles = 1 << cfs.RoleNone // with a certificate or without
	servers  roles = 1 << cfs.RoleStorage
	clients  roles = 1 << cfs.RoleClient
	admins   roles = 1 << cfs.RoleAdmin
	everyone       = servers | clients | admins
)

// permissions says who may ask for what: the one table. What a server tells only of itself, and
// what of a command only servers may, the services check by the number in the certificate.
var permissions = map[wire.Op]roles{
	wire.OpHello:        anybody | everyone,
	wire.OpPing:         anybody | everyone,
	wire.OpEnrol:        anybody | everyone,
	wire.OpPutShard:     everyone,
	wire.OpGetShard:     everyone,
	wire.OpDeleteShards: everyone,
	wire.OpListShards:   servers | admins,
	wire.OpCommand:      everyone,
	wire.OpQuery:        everyone,
	wire.OpHeartbeat:    everyone,
	wire.OpStatus:       everyone,
	wire.OpRaft:         servers,
	wire.OpSnapshot:     servers,
	wire.OpAdmin:        admins | servers, // every verb; servers pass on what root on their machine asks for
	wire.OpInspect:      admins | servers,
	wire.OpReportShard:  everyone,
	wire.OpCheckState:   admins | servers,
	wire.OpWatch:        everyone,
	wire.OpWaitLock:     everyone,
	wire.OpTop:          admins | servers,
}

// ofStrangers is what a server may still ask for whose number this one does not know: it may have been removed, or have
// joined a moment ago. What it is to the cluster the leader says, to its heartbeat and to its wish for a certificate.
var ofStrangers = map[wire.Op]bool{wire.OpHello: true, wire.OpPing: true, wire.OpEnrol: true, wire.OpStatus: true, wire.OpHeartbeat: true}

// allow is permissions, with what is known of the peer itself besides: a key that was revoked is refused here for
// every request, however its connection came to be. A server's certificate counts as long as its number is in
// the map; one that has not caught up yet is why the refusal is not for good.
func (s *security) allow(p *wire.Peer, op wire.Op) error {
	if err := s.checkRevoked(p.Key); err != nil {
		return err
	}
	if p.Role == cfs.RoleStorage && !ofStrangers[op] && !s.n.raft.knows(p.Certified) {
		return cfs.Errorf(op.String(), cfs.Unavailable, "node %d is not in this server's map: it was removed, or has just joined", p.Certified)
	}
	return allow(p, op)
}

// allow is the one place where a peer's role is held against what it asks for. An operation of
// a newer version is for the service to refuse.
func allow(p *wire.Peer, op wire.Op) error {
	may, known := permissions[op]
	switch {
	case may&(1<<p.Role) != 0 || !known && p.Role != cfs.RoleNone:
		return nil
	case p.Role == cfs.RoleNone:
		return cfs.Errorf(op.String(), cfs.Denied, "no certificate was shown: enrol with a token, or use the unix socket of a server on its machine")
	}
	return cfs.Errorf(op.String(), cfs.Denied, "the certificate is of a %s, who may not do that", p.Role)
}
