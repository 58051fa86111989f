package fsm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// lead applies an operation of the leader at a time.
func (h *harness) lead(now int64, op cfs.Op) cfs.Kind {
	h.t.Helper()
	h.index++
	r, err := (&Machine{}).Apply(h.kv, h.index, now, &cfs.Command{Ops: []cfs.Op{op}})
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Kind
}

func token(id string, secret byte, expires int64) cfs.Token {
	hash := make([]byte, tokenHash)
	hash[0] = secret
	return cfs.Token{ID: id, Role: cfs.RoleClient, ExpiresNS: expires, Hash: hash}
}

// enrolled is a key of a machine.
func enrolled(n int) cfs.Enrolled { return cfs.Enrolled{Key: fmt.Sprintf("%032x", n), Name: "host"} }

func TestAuthorityOnce(t *testing.T) {
	h := newHarness(t)
	ca := cfs.CA{Cert: []byte("cert"), Key: []byte("key")}
	want := func(got, want cfs.Kind) {
		t.Helper()
		if got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
	want(h.lead(1, cfs.Op{Kind: cfs.OpAddToken, Token: token("a", 1, 9)}), cfs.Unsupported)
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Cert: []byte("cert")}}), cfs.Invalid)
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: ca}), cfs.KindOK)
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: ca}), cfs.KindOK)
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Off: true}}), cfs.Conflict)
	founder := enrolled(2)
	founder.Node = 2
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: ca, Enrolled: founder}), cfs.Invalid)
	founder.Role = cfs.RoleStorage
	want(h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Off: true}, Enrolled: founder}), cfs.Invalid)
	want(h.lead(7, cfs.Op{Kind: cfs.OpSetCA, CA: ca, Enrolled: founder}), cfs.KindOK)
	founder.AtNS = 7
	if a := h.read(&cfs.Query{Kind: cfs.QueryEnrolled}); len(a.Enrolled) != 1 || a.Enrolled[0] != founder {
		t.Errorf("the founders are %+v", a.Enrolled)
	}
	m, err := ReadMap(h.kv)
	if err != nil || m.TLSOff || len(m.CA) != 2*fingerprintBytes {
		t.Errorf("map %+v %v", m, err)
	}
	off := newHarness(t)
	want(off.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Off: true}}), cfs.KindOK)
	want(off.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: ca}), cfs.Conflict)
	want(off.lead(1, cfs.Op{Kind: cfs.OpAddToken, Token: token("a", 1, 9)}), cfs.Unsupported)
	if m, err = ReadMap(off.kv); err != nil || !m.TLSOff || m.CA != "" {
		t.Errorf("map %+v %v", m, err)
	}
}

func TestTokens(t *testing.T) {
	h := newHarness(t)
	h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Cert: []byte("cert"), Key: []byte("key")}})
	for _, step := range []struct {
		now  int64
		kind cfs.OpKind
		tok  cfs.Token
		want cfs.Kind
	}{
		{1, cfs.OpAddToken, token("a", 1, 100), cfs.KindOK},
		{1, cfs.OpAddToken, token("a", 1, 100), cfs.Exists},
		{1, cfs.OpAddToken, token("", 1, 100), cfs.Invalid},
		{1, cfs.OpAddToken, cfs.Token{ID: "b", Hash: make([]byte, tokenHash)}, cfs.Invalid},
		{2, cfs.OpUseToken, token("a", 2, 0), cfs.Denied},
		{2, cfs.OpUseToken, token("b", 1, 0), cfs.Denied},
		{2, cfs.OpUseToken, token("a", 1, 0), cfs.KindOK},
		{2, cfs.OpUseToken, token("a", 1, 0), cfs.Denied}, // spent
		{3, cfs.OpAddToken, token("c", 1, 100), cfs.KindOK},
		{100, cfs.OpUseToken, token("c", 1, 0), cfs.Denied}, // expired
		{100, cfs.OpUseToken, cfs.Token{ID: "d"}, cfs.NotFound},
		{100, cfs.OpUseToken, cfs.Token{ID: "c"}, cfs.KindOK},
	} {
		if got := h.lead(step.now, cfs.Op{Kind: step.kind, Token: step.tok, Enrolled: enrolled(1)}); got != step.want {
			t.Errorf("%+v: %v", step, got)
		}
	}
	for i := range MaxTokens {
		if got := h.lead(200, cfs.Op{Kind: cfs.OpAddToken, Token: token(fmt.Sprint(i), 1, 300)}); got != cfs.KindOK {
			t.Fatalf("token %d: %v", i, got)
		}
	}
	if got := h.lead(201, cfs.Op{Kind: cfs.OpAddToken, Token: token("more", 1, 300)}); got != cfs.Overloaded {
		t.Errorf("one token too many: %v", got)
	}
	if got := h.lead(300, cfs.Op{Kind: cfs.OpAddToken, Token: token("more", 1, 400)}); got != cfs.KindOK {
		t.Errorf("a token after the others have expired: %v", got)
	}
	a, err := Read(h.kv, &cfs.Query{Kind: cfs.QueryTokens})
	if err != nil || len(a.Tokens) != 1 || a.Tokens[0].ID != "more" || a.Tokens[0].Hash != nil {
		t.Errorf("tokens %+v %v", a.Tokens, err)
	}
	checkSound(t, h)
}

// TestEnrolled: for whom a token was used is known, by key, and a server's number is its own from then on.
func TestEnrolled(t *testing.T) {
	h := newHarness(t)
	h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Cert: []byte("cert"), Key: []byte("key")}})
	use := func(now int64, role cfs.Role, who cfs.Enrolled) cfs.Kind {
		t.Helper()
		tok := token("t", 1, now+10)
		tok.Role = role
		if got := h.lead(now, cfs.Op{Kind: cfs.OpAddToken, Token: tok}); got != cfs.KindOK && got != cfs.Exists {
			t.Fatal(got)
		}
		return h.lead(now, cfs.Op{Kind: cfs.OpUseToken, Token: cfs.Token{ID: "t", Hash: tok.Hash}, Enrolled: who})
	}
	server := enrolled(7)
	server.Node = 4
	for _, bad := range []struct {
		role cfs.Role
		who  cfs.Enrolled
	}{{cfs.RoleStorage, enrolled(7)}, {cfs.RoleClient, server}, {cfs.RoleClient, cfs.Enrolled{Key: "7"}}} {
		if got := use(2, bad.role, bad.who); got != cfs.Invalid {
			t.Errorf("%+v: %v", bad, got)
		}
		h.lead(2, cfs.Op{Kind: cfs.OpUseToken, Token: cfs.Token{ID: "t"}})
	}
	if a := h.read(&cfs.Query{Kind: cfs.QueryEnrolled}); len(a.Enrolled) > 0 {
		t.Errorf("what was refused or taken back is recorded: %+v", a.Enrolled)
	}
	before := h.read(&cfs.Query{Kind: cfs.QueryMap}).Map.Version
	if got := use(3, cfs.RoleStorage, server); got != cfs.KindOK {
		t.Fatal(got)
	}
	m := h.read(&cfs.Query{Kind: cfs.QueryMap}).Map
	if len(m.Nodes) != 1 || m.Nodes[0] != (cfs.Node{ID: 4, State: cfs.StateDown}) || m.Version == before {
		t.Errorf("the map of version %d, before it %d: %+v", m.Version, before, m.Nodes)
	}
	known := cfs.Node{ID: 5, Addr: "n5:1", State: cfs.StateOut}
	h.lead(4, cfs.Op{Kind: cfs.OpSetNode, Node: known})
	again := enrolled(8)
	again.Node = 5
	use(5, cfs.RoleStorage, again)
	if m = h.read(&cfs.Query{Kind: cfs.QueryMap}).Map; len(m.Nodes) != 2 || m.Nodes[1] != known {
		t.Errorf("one that was known: %+v", m.Nodes)
	}
	again.Name = "host, later"
	use(6, cfs.RoleStorage, again)
	h.index++
	fill := &tx{kv: h.kv, index: h.index}
	for i := range maxEnrolled - 2 {
		k := enrolled(100 + i)
		k.Role, k.AtNS = cfs.RoleClient, 7
		fill.set(enrolledKey(k.Key), encodeEnrolled(&k))
	}
	fill.setMark(markApplied, h.index)
	if err := fill.commit(h.kv); err != nil {
		t.Fatal(err)
	}
	use(8, cfs.RoleAdmin, enrolled(9))
	var all []cfs.Enrolled
	for a, from := (&cfs.Answer{More: true}), ""; a.More; from = all[len(all)-1].Key {
		a = h.read(&cfs.Query{Kind: cfs.QueryEnrolled, Name: from, Limit: 1000})
		all = append(all, a.Enrolled...)
	}
	again.Role, again.AtNS = cfs.RoleStorage, 6
	admin := enrolled(9)
	admin.Role, admin.AtNS = cfs.RoleAdmin, 8
	if len(all) != maxEnrolled || all[0] != again || all[1] != admin {
		t.Errorf("%d keys, the first are %+v", len(all), all[:2])
	}
	checkSound(t, h)
}

// A server's number is the key's that was enrolled with it last: of two that join at a time, and of a directory that
// was lost, the older is refused.
func TestServerNumberEnrolledAgain(t *testing.T) {
	h := newHarness(t)
	h.lead(1, cfs.Op{Kind: cfs.OpSetCA, CA: cfs.CA{Cert: []byte("cert"), Key: []byte("key")}})
	for i, node := range []cfs.NodeID{4, 4, 5, 4} {
		tok, who := token(fmt.Sprint(i), 1, 100), enrolled(i)
		tok.Role, who.Node = cfs.RoleStorage, node
		if i == 3 {
			who.Key = enrolled(1).Key // its own again
		}
		h.lead(1, cfs.Op{Kind: cfs.OpAddToken, Token: tok})
		if got := h.lead(2, cfs.Op{Kind: cfs.OpUseToken, Token: tok, Enrolled: who}); got != cfs.KindOK {
			t.Errorf("token %d: %v", i, got)
		}
	}
	m, err := ReadMap(h.kv)
	if err != nil || !slices.Equal(m.Revoked, []string{enrolled(0).Key}) {
		t.Errorf("revoked are %v, %v; want the first key of node 4 alone", m.Revoked, err)
	}
}

func TestRevoke(t *testing.T) {
	h := newHarness(t)
	first, more := enrolled(1<<30).Key, enrolled(1<<31).Key
	for key, want := range map[string]cfs.Kind{first: cfs.KindOK, "": cfs.Invalid, strings.ToUpper(enrolled(255).Key): cfs.Invalid,
		first[1:]: cfs.Invalid, "0" + first: cfs.Invalid, "0x" + first[2:]: cfs.Invalid} {
		if got := h.lead(5, cfs.Op{Kind: cfs.OpRevoke, Name: key}); got != want {
			t.Errorf("revoke %q: %v, want %v", key, got, want)
		}
	}
	for i := range MaxRevoked - 1 {
		h.lead(6, cfs.Op{Kind: cfs.OpRevoke, Name: enrolled(i).Key})
	}
	if got := h.lead(7, cfs.Op{Kind: cfs.OpRevoke, Name: more}); got != cfs.Overloaded {
		t.Errorf("one too many: %v", got)
	}
	if got := h.lead(5+int64(revokedFor)+1, cfs.Op{Kind: cfs.OpRevoke, Name: more}); got != cfs.KindOK {
		t.Errorf("after the first may be forgotten: %v", got)
	}
	m, err := ReadMap(h.kv)
	if err != nil || len(m.Revoked) != MaxRevoked || slices.Contains(m.Revoked, first) || !slices.Contains(m.Revoked, more) {
		t.Errorf("%d revoked %v", len(m.Revoked), err)
	}
	if revokedFor < 90*24*time.Hour {
		t.Error("a certificate would outlive its revocation")
	}
	checkSound(t, h)
}

// checkSound has Check find nothing.
func checkSound(t *testing.T, h *harness) {
	t.Helper()
	r, err := Check(h.kv)
	if err != nil || r.Faults > 0 {
		t.Errorf("check: %+v %v", r, err)
	}
}
