package fsm

import (
	"fmt"
	"slices"
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
		if got := h.lead(step.now, cfs.Op{Kind: step.kind, Token: step.tok}); got != step.want {
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

func TestRevoke(t *testing.T) {
	h := newHarness(t)
	for serial, want := range map[string]cfs.Kind{"00ff": cfs.KindOK, "": cfs.Invalid, "00FF": cfs.Invalid, "0x": cfs.Invalid, "abc": cfs.Invalid} {
		if got := h.lead(5, cfs.Op{Kind: cfs.OpRevoke, Name: serial}); got != want {
			t.Errorf("revoke %q: %v, want %v", serial, got, want)
		}
	}
	for i := range MaxRevoked - 1 {
		h.lead(6, cfs.Op{Kind: cfs.OpRevoke, Name: fmt.Sprintf("%08x", i)})
	}
	if got := h.lead(7, cfs.Op{Kind: cfs.OpRevoke, Name: "aa"}); got != cfs.Overloaded {
		t.Errorf("one too many: %v", got)
	}
	if got := h.lead(5+int64(revokedFor)+1, cfs.Op{Kind: cfs.OpRevoke, Name: "aa"}); got != cfs.KindOK {
		t.Errorf("after the first may be forgotten: %v", got)
	}
	m, err := ReadMap(h.kv)
	if err != nil || len(m.Revoked) != MaxRevoked || slices.Contains(m.Revoked, "00ff") || !slices.Contains(m.Revoked, "aa") {
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
