package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// MaxTokens bounds the tokens that have not been used.
	MaxTokens = 1024
	// MaxRevoked bounds the keys that are refused: every node has their ids in its map.
	MaxRevoked = 1024
	// revokedFor is how long a key is refused, which is longer than any certificate lives: none is renewed meanwhile.
	revokedFor = 100 * 24 * time.Hour
	// maxEnrolled bounds the keys that are known to have been enrolled; beyond it the oldest is forgotten.
	maxEnrolled = 16 << 10
	// maxTokenID and tokenHash are the lengths of a token's id (at most) and hash, in bytes.
	maxTokenID = 64
	tokenHash  = sha256.Size
	// maxCABytes bounds the authority's certificate and its key, each.
	maxCABytes = 16 << 10
	// fingerprintBytes is how much of a certificate's hash people are shown.
	fingerprintBytes = 16
)

// The rows of prefixTrust, by their second byte.
const (
	identityCA       = 'a' // the one authority
	identityEnrolled = 'e' // then the key's id
	identityRevoked  = 'r' // then the key's id
	identityToken    = 't' // then the token's id
)

func authorityKey() []byte { return []byte{prefixTrust, identityCA} }

func enrolledKey(key string) []byte { return append([]byte{prefixTrust, identityEnrolled}, key...) }

func revokedKey(key string) []byte { return append([]byte{prefixTrust, identityRevoked}, key...) }

func tokenKey(id string) []byte { return append([]byte{prefixTrust, identityToken}, id...) }

func encodeCA(c *cfs.CA) []byte {
	e := newEnc(9 + len(c.Cert) + len(c.Key))
	e.bool(c.Off)
	e.bytes(c.Cert)
	e.bytes(c.Key)
	return e.b
}

func decodeCA(b []byte) (*cfs.CA, bool) {
	d := newDec(b)
	c := &cfs.CA{Off: d.bool(), Cert: d.bytes(), Key: d.bytes()}
	return c, d.ok() && validCA(c)
}

func validCA(c *cfs.CA) bool {
	if c.Off {
		return len(c.Cert) == 0 && len(c.Key) == 0
	}
	return len(c.Cert) > 0 && len(c.Cert) <= maxCABytes && len(c.Key) > 0 && len(c.Key) <= maxCABytes
}

// encodeToken is a token's row; its id is in the key.
func encodeToken(k *cfs.Token) []byte {
	e := newEnc(9 + tokenHash)
	e.u8(uint8(k.Role))
	e.u64(uint64(k.ExpiresNS))
	e.b = append(e.b, k.Hash...)
	return e.b
}

func decodeToken(id string, b []byte) (*cfs.Token, bool) {
	d := newDec(b)
	k := &cfs.Token{ID: id, Role: cfs.Role(d.u8()), ExpiresNS: int64(d.u64()), Hash: bytes.Clone(d.take(tokenHash))}
	return k, d.ok() && validToken(k)
}

func validToken(k *cfs.Token) bool {
	return k.ID != "" && len(k.ID) <= maxTokenID && len(k.Hash) == tokenHash && k.Role >= cfs.RoleStorage && k.Role <= cfs.RoleAdmin
}

// encodeEnrolled is for whom a key was enrolled; its id is in the row's key.
func encodeEnrolled(k *cfs.Enrolled) []byte {
	e := newEnc(15 + len(k.Name))
	e.u8(uint8(k.Role))
	e.u16(uint16(k.Node))
	e.u64(uint64(k.AtNS))
	e.bytes([]byte(k.Name))
	return e.b
}

func decodeEnrolled(key string, b []byte) (*cfs.Enrolled, bool) {
	d := newDec(b)
	k := &cfs.Enrolled{Key: key, Role: cfs.Role(d.u8()), Node: cfs.NodeID(d.u16()), AtNS: int64(d.u64()), Name: string(d.bytes())}
	return k, d.ok() && validEnrolled(k)
}

func validEnrolled(k *cfs.Enrolled) bool {
	return cfs.ValidKey(k.Key) && len(k.Name) <= cfs.MaxName && k.Role >= cfs.RoleStorage && k.Role <= cfs.RoleAdmin && (k.Role == cfs.RoleStorage) == (k.Node != 0)
}

// encodeRevoked is when a key was revoked; its id is in the row's key.
func encodeRevoked(atNS int64) []byte {
	e := newEnc(8)
	e.u64(uint64(atNS))
	return e.b
}

func decodeRevoked(b []byte) (int64, bool) {
	d := newDec(b)
	at := int64(d.u64())
	return at, d.ok()
}

// setCA records the authority, or that there is none, once. The same again is no error. Each founder may come with it, for
// whom it signed before.
func (t *tx) setCA(c *cfs.CA, founder cfs.Enrolled) cfs.Kind {
	named := founder != cfs.Enrolled{}
	if founder.AtNS = t.now; !validCA(c) || named && (c.Off || founder.Role != cfs.RoleStorage || !validEnrolled(&founder)) {
		return cfs.Invalid
	}
	if old, ok := t.get(authorityKey()); ok && !bytes.Equal(old, encodeCA(c)) {
		return cfs.Conflict
	} else if !ok {
		t.set(authorityKey(), encodeCA(c))
		t.changeMap()
	}
	if named {
		t.enrol(&founder)
	}
	return cfs.KindOK
}

// addToken records a token; those that have expired make room for it.
func (t *tx) addToken(k *cfs.Token) cfs.Kind {
	if !validToken(k) {
		return cfs.Invalid
	}
	if ca, ok := load(t, authorityKey(), decodeCA); !ok || ca.Off {
		return cfs.Unsupported
	}
	if _, ok := t.get(tokenKey(k.ID)); ok {
		return cfs.Exists
	}
	n := 0
	var expired [][]byte
	t.tokens(func(key []byte, old *cfs.Token) {
		if n++; old.ExpiresNS <= t.now {
			expired = append(expired, bytes.Clone(key))
		}
	})
	if n-len(expired) >= MaxTokens {
		return cfs.Overloaded
	}
	for _, key := range expired {
		t.del(key)
	}
	t.set(tokenKey(k.ID), encodeToken(k))
	return cfs.KindOK
}

// useToken takes a token away, for him who knows its secret and enrols or, with a nil hash, for an administrator.
func (t *tx) useToken(k *cfs.Token, who cfs.Enrolled) cfs.Kind {
	old, ok := load(t, tokenKey(k.ID), func(b []byte) (*cfs.Token, bool) { return decodeToken(k.ID, b) })
	switch {
	case !ok && len(k.Hash) == 0:
		return cfs.NotFound
	case !ok:
		return cfs.Denied
	case len(k.Hash) > 0 && (!bytes.Equal(old.Hash, k.Hash) || old.ExpiresNS <= t.now):
		return cfs.Denied
	}
	if len(k.Hash) > 0 {
		if who.Role, who.AtNS = old.Role, t.now; !validEnrolled(&who) {
			return cfs.Invalid
		}
		if kind := t.replaceKeys(&who); kind != cfs.KindOK {
			return kind
		}
		t.enrol(&who)
	}
	t.del(tokenKey(k.ID))
	return cfs.KindOK
}

// replaceKeys revokes what a server's number was enrolled with before: whoever holds that key, in a directory that
// was lost or because two joined at a time, is not that server any more.
func (t *tx) replaceKeys(who *cfs.Enrolled) cfs.Kind {
	if who.Node == 0 {
		return cfs.KindOK
	}
	var older []string
	t.enrolled("", func(k *cfs.Enrolled) bool {
		if k.Node == who.Node && k.Key != who.Key {
			older = append(older, k.Key)
		}
		return true
	})
	for _, key := range older {
		if kind := t.revoke(key); kind != cfs.KindOK {
			return kind
		}
	}
	return cfs.KindOK
}

// enrol records a key. A server's number is in the map from then on, and what its certificate allows with it.
func (t *tx) enrol(who *cfs.Enrolled) {
	n := 0
	var oldest *cfs.Enrolled
	t.enrolled("", func(k *cfs.Enrolled) bool {
		if n++; oldest == nil || k.AtNS < oldest.AtNS {
			oldest = k
		}
		return true
	})
	if _, again := t.get(enrolledKey(who.Key)); !again && n >= maxEnrolled {
		t.del(enrolledKey(oldest.Key))
	}
	t.set(enrolledKey(who.Key), encodeEnrolled(who))
	if who.Node == 0 {
		return
	}
	if _, ok := t.get(nodeKey(who.Node)); !ok {
		t.set(nodeKey(who.Node), encodeNode(&cfs.Node{ID: who.Node, State: cfs.StateDown}))
		t.changeMap()
	}
}

// revoke refuses a key from now on; those whose last certificates have expired since they were make room for it.
func (t *tx) revoke(id string) cfs.Kind {
	if !cfs.ValidKey(id) {
		return cfs.Invalid
	}
	if _, ok := t.get(revokedKey(id)); ok {
		return cfs.KindOK
	}
	n := 0
	var old [][]byte
	t.revoked(func(key []byte, atNS int64) {
		if n++; atNS+int64(revokedFor) < t.now {
			old = append(old, bytes.Clone(key))
		}
	})
	if n-len(old) >= MaxRevoked {
		return cfs.Overloaded
	}
	for _, key := range old {
		t.del(key)
	}
	t.set(revokedKey(id), encodeRevoked(t.now))
	t.changeMap()
	return cfs.KindOK
}

// tokens goes through the tokens in the order of their ids.
func (t *tx) tokens(each func(key []byte, k *cfs.Token)) {
	prefix := tokenKey("")
	t.scan(prefix, after(prefix), func(key, v []byte) bool {
		k, ok := decodeToken(string(key[len(prefix):]), v)
		if !ok {
			t.corrupt(key)
			return false
		}
		each(key, k)
		return true
	})
}

// enrolled goes through the keys that were enrolled in the order of their ids, after one, until each is false.
func (t *tx) enrolled(after string, each func(k *cfs.Enrolled) bool) {
	t.scan(append(enrolledKey(after), 0), []byte{prefixTrust, identityEnrolled + 1}, func(key, v []byte) bool {
		k, ok := decodeEnrolled(string(key[2:]), v)
		if !ok {
			t.corrupt(key)
			return false
		}
		return each(k)
	})
}

// revoked goes through the revoked keys in the order of their ids.
func (t *tx) revoked(each func(key []byte, atNS int64)) {
	prefix := revokedKey("")
	t.scan(prefix, after(prefix), func(key, v []byte) bool {
		at, ok := decodeRevoked(v)
		if !ok {
			t.corrupt(key)
			return false
		}
		each(key, at)
		return true
	})
}

// identity fills in what the map says of it.
func (t *tx) identity(m *cfs.Map) {
	if ca, ok := load(t, authorityKey(), decodeCA); ok {
		m.TLSOff = ca.Off
		if !ca.Off {
			sum := sha256.Sum256(ca.Cert)
			m.CA = hex.EncodeToString(sum[:fingerprintBytes])
		}
	}
	t.revoked(func(key []byte, _ int64) { m.Revoked = append(m.Revoked, string(key[2:])) })
}

// listTokens lists the tokens without their hashes.
func (t *tx) listTokens(a *cfs.Answer) {
	t.tokens(func(_ []byte, k *cfs.Token) {
		a.Tokens = append(a.Tokens, cfs.Token{ID: k.ID, Role: k.Role, ExpiresNS: k.ExpiresNS})
	})
}

// listEnrolled lists the keys that were enrolled.
func (t *tx) listEnrolled(q *cfs.Query, a *cfs.Answer) {
	limit := listLimit(q.Limit)
	t.enrolled(q.Name, func(k *cfs.Enrolled) bool {
		if len(a.Enrolled) == limit {
			a.More = true
			return false
		}
		a.Enrolled = append(a.Enrolled, *k)
		return true
	})
}

// ReadCA is the authority with its key; nil until it is recorded.
func ReadCA(r Reader) (*cfs.CA, error) {
	t := &tx{kv: r}
	ca, ok := load(t, authorityKey(), decodeCA)
	if !ok {
		ca = nil
	}
	return ca, t.err
}

// ReadToken is a token with its hash; nil for none.
func ReadToken(r Reader, id string) (*cfs.Token, error) {
	t := &tx{kv: r}
	k, ok := load(t, tokenKey(id), func(b []byte) (*cfs.Token, bool) { return decodeToken(id, b) })
	if !ok {
		k = nil
	}
	return k, t.err
}

// identity checks the rows of identity.
func (c *checker) identity() {
	tokens, revoked, enrolled := 0, 0, 0
	c.each(prefixTrust, func(k, v []byte) {
		ok := false
		switch {
		case bytes.Equal(k, authorityKey()):
			_, ok = decodeCA(v)
		case len(k) > 2 && k[1] == identityToken:
			tokens++
			_, ok = decodeToken(string(k[2:]), v)
		case len(k) > 2 && k[1] == identityEnrolled:
			enrolled++
			_, ok = decodeEnrolled(string(k[2:]), v)
		case len(k) > 2 && k[1] == identityRevoked:
			revoked++
			_, ok = decodeRevoked(v)
			ok = ok && cfs.ValidKey(string(k[2:]))
		}
		if !ok {
			c.bad("identity record %x", k)
		}
	})
	if tokens > MaxTokens || revoked > MaxRevoked || enrolled > maxEnrolled {
		c.bad("%d tokens, %d revoked and %d enrolled keys, at most %d, %d and %d", tokens, revoked, enrolled, MaxTokens, MaxRevoked, maxEnrolled)
	}
}
