package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

const (
	// leaseTime bounds how long a heartbeat renews the read leases for, whatever the leader says.
	leaseTime = 1500 * time.Millisecond
	// sessionTime is how long after the sending of its last confirmed heartbeat the session certainly
	// lives, and with it what it owns: the cluster ends it after 10 s of silence.
	sessionTime = 8 * time.Second
	// watchAttempt bounds one Watch: the leader answers one after about a second.
	watchAttempt = 3 * time.Second
	// maxWatches bounds the Watches in flight: one that waits, and those with acknowledgements.
	maxWatches = 4
	// maxAcks bounds the acknowledgements that wait; what is not acknowledged is asked again.
	maxAcks = 64 << 10
	// maxAcksSent bounds those of one Watch.
	maxAcksSent = 1024
)

// leaseState is what this client may answer from memory, and until when. It is replaced as a
// whole, so that an era is never taken with the time of another.
type leaseState struct {
	session cfs.SessionID
	epoch   uint64 // as the leader numbers it; 0: none yet
	// era numbers sessions and epochs for this client: what was granted in another one is void.
	era   uint64
	until int64 // CLOCK_BOOTTIME at which the read leases lapse; 0: there are none
	alive int64 // the same for what the session owns
}

// leases keeps the session's leases: renews them, and gives them back.
type leases struct {
	state atomic.Pointer[leaseState]
	boot  func() int64
	beat  chan struct{} // a heartbeat is due at once
	acked chan struct{} // acknowledgements wait

	mu      sync.Mutex // changes state, and guards what follows; nothing is called under it
	acks    []*wirepb.Ack
	serving map[uint64]struct{} // recalls of this era that are worked on and will be acknowledged
}

func newLeases(boot func() int64) *leases {
	if boot == nil {
		boot = newBootClock().now
	}
	l := &leases{boot: boot, beat: make(chan struct{}, 1), acked: make(chan struct{}, 1), serving: map[uint64]struct{}{}}
	l.state.Store(&leaseState{})
	return l
}

// begin starts a new era: of a session, or of an epoch of it. The old one's leases are void, and
// acknowledgements of its recalls say nothing to the new one's leader. alive is kept within a session.
func (l *leases) begin(session cfs.SessionID, epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beginLocked(session, epoch)
}

func (l *leases) beginLocked(session cfs.SessionID, epoch uint64) {
	old := l.state.Load()
	next := &leaseState{session: session, epoch: epoch, era: old.era + 1}
	if session == old.session {
		next.alive = old.alive
	}
	l.state.Store(next)
	l.acks, l.serving = nil, map[uint64]struct{}{}
	signal(l.beat)
	signal(l.acked) // the Watch that waits is of before
}

// adopt takes note of the epoch that the leader has told in an answer to a request of era; what it
// told in an earlier era may be older than what is known.
func (l *leases) adopt(era, epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.state.Load(); s.era == era && epoch != 0 && epoch != s.epoch {
		l.beginLocked(s.session, epoch)
	}
}

// void ends the leases of an epoch where the leader has told of another one, and returns the era after them; false
// where there is nothing to end.
func (l *leases) void(era, epoch uint64) (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state.Load()
	if s.era != era || s.epoch == 0 || epoch == 0 || epoch == s.epoch {
		return 0, false
	}
	next := *s
	next.era, next.until = s.era+1, 0
	l.state.Store(&next)
	return next.era, true
}

// newEpoch takes note of the epoch that the leader has told in an answer to a request of era. With its first use the
// leader takes the leases of the one before for given up, so that what is kept above goes first.
func (c *Client) newEpoch(era, epoch uint64) {
	if voided, ok := c.leases.void(era, epoch); ok {
		c.above(Observer.ForgetAll)
		era = voided
	}
	c.leases.adopt(era, epoch)
}

// forget voids what is kept without the leader's word: under the same epoch, in a new era.
func (l *leases) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := *l.state.Load()
	next.era++
	// Recalls of the epoch go on; those that are worked on are acknowledged all the same.
	l.state.Store(&next)
}

// renew counts the leases from sent on, when a heartbeat of era was sent that the leader has confirmed.
func (l *leases) renew(era uint64, sent int64, lease time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state.Load()
	if s.era != era {
		return
	}
	next := *s
	next.alive = max(s.alive, sent+int64(sessionTime))
	if s.epoch != 0 {
		next.until = max(s.until, sent+int64(min(lease, leaseTime)))
	}
	l.state.Store(&next)
}

// left is how long the read leases have still to run.
func (l *leases) left() time.Duration {
	return time.Duration(max(0, l.state.Load().until-l.boot()))
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// grantOf is what is granted from now on to a session is kept under.
func (c *Client) grantOf(s *session) grant {
	asked := c.cache.seq.Load() // before the era: a recall counts in the era that it comes in
	st := c.leases.state.Load()
	return grant{st.era, asked}.leased(st.session == s.id && st.epoch != 0)
}

// leased says of an answer that was asked for at g what it is kept under: with its leases, or nothing.
func (g grant) leased(yes bool) grant {
	if !yes {
		g.era = 0
	}
	return g
}

// heartbeats keeps the session and its leases alive and learns of changes of the map.
func (c *Client) heartbeats() {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		err := c.heartbeat()
		if err == nil {
			err = c.raiseFloor(c.session.Load())
		}
		if err != nil && c.ctx.Err() == nil {
			c.log.Debug("heartbeat failed", "err", err)
		}
		c.wholes.forget(time.Now().Add(-keepWhole))
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		case <-c.leases.beat:
		}
	}
}

// heartbeat renews the session and its leases, and tells a leader that does not know which inodes are open.
func (c *Client) heartbeat() error {
	ctx, cancel := context.WithTimeout(c.ctx, 4*heartbeatEvery)
	defer cancel()
	s, st := c.session.Load(), c.leases.state.Load()
	req := &wirepb.Heartbeat{Session: uint64(s.id), MapVersion: c.layout.get().Version, Epoch: st.epoch}
	if st.epoch != 0 && s.attached != st.epoch {
		req.Opens = c.inodes.opens()
	}
	sent := c.leases.boot() // of the first attempt, which is before the one that is answered
	var reply wirepb.HeartbeatReply
	_, err := c.toLeader(ctx, wire.OpHeartbeat, req, &reply)
	if errors.Is(err, cfs.NoSession) {
		return c.sessionLost(ctx, s)
	}
	if err != nil {
		return err
	}
	if reply.Epoch == st.epoch {
		s.attached = st.epoch
		c.leases.renew(st.era, sent, time.Duration(reply.LeaseMs)*time.Millisecond)
	} else {
		c.newEpoch(st.era, reply.Epoch)
	}
	c.inlineFull.Store(reply.InlineFull)
	if reply.MapVersion > c.layout.get().Version {
		return c.refreshMap(ctx)
	}
	return nil
}

// watchLeases keeps a Watch in flight, by which the leader recalls leases. Acknowledgements
// do not wait for its answer: they go with another one, which ends the one that waits.
func (c *Client) watchLeases() {
	done := make(chan error, maxWatches)
	backoff := minBackoff
	var retry <-chan time.Time
	var era uint64 // of the last one
	for flying := 0; ; {
		st, acks := c.leases.takeAcks(flying < maxWatches && retry == nil)
		anew := flying == 0 || st.era != era && flying < maxWatches
		if anew && retry == nil || len(acks) > 0 {
			flying++
			era = st.era
			go func() { done <- c.watchOnce(st, acks) }()
			continue
		}
		select {
		case <-c.ctx.Done():
			for ; flying > 0; flying-- {
				<-done
			}
			return
		case <-c.leases.acked:
		case <-retry:
			retry = nil
		case err := <-done:
			flying--
			if err == nil {
				backoff = minBackoff
				break
			}
			c.log.Debug("watch failed", "err", err)
			if retry == nil {
				retry = time.After(backoff)
				backoff = min(2*backoff, maxBackoff)
			}
		}
	}
}

// takeAcks is what the next Watch acknowledges, and under which epoch.
func (l *leases) takeAcks(now bool) (*leaseState, []*wirepb.Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.state.Load()
	if !now || len(l.acks) == 0 {
		return st, nil
	}
	n := min(len(l.acks), maxAcksSent)
	acks := l.acks[:n:n]
	l.acks = l.acks[n:]
	if len(l.acks) > 0 {
		signal(l.acked)
	}
	return st, acks
}

// watchOnce asks one server, which is the leader or says who is: another attempt must not carry
// acknowledgements that were for this one. What they were of is asked again.
func (c *Client) watchOnce(st *leaseState, acks []*wirepb.Ack) error {
	req := &wirepb.Watch{Session: uint64(st.session), Epoch: st.epoch, Acks: acks}
	var reply wirepb.WatchReply
	if err := c.attempt(c.ctx, watchAttempt, wire.OpWatch, req, &reply); err != nil {
		if errors.Is(err, cfs.NoSession) {
			signal(c.leases.beat) // which finds the same, and acts on it
		}
		return err
	}
	c.newEpoch(st.era, reply.Epoch)
	for _, r := range reply.Recalls {
		c.recall(reply.Epoch, r)
	}
	return nil
}

// claim reports that a recall of an epoch is to be worked on: it is not already.
func (l *leases) claim(epoch, id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.serving[id]; known || l.state.Load().epoch != epoch {
		return false
	}
	l.serving[id] = struct{}{}
	return true
}

// acknowledge answers a recall of an epoch.
func (l *leases) acknowledge(epoch uint64, a *wirepb.Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Load().epoch != epoch {
		return
	}
	delete(l.serving, a.Id) // also where there is no room: then it is served again
	if len(l.acks) >= maxAcks {
		return
	}
	l.acks = append(l.acks, a)
	signal(l.acked)
}
