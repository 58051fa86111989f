package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"strings"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

const (
	tokenPrefix = "cfs1."
	idBytes     = 8
	secretBytes = 16
	pinBytes    = 16
	tokenBytes  = idBytes + secretBytes + pinBytes
)

// Token is what a machine shows to be given a certificate.
type Token struct {
	ID     string // hex
	secret [secretBytes]byte
	pin    [pinBytes]byte // of the authority
}

// NewToken makes a token of the cluster whose authority is given, and what the cluster keeps of it.
func NewToken(ca *cfs.CA, role cfs.Role, expires time.Time) (Token, cfs.Token, error) {
	var id [idBytes]byte
	t := Token{pin: pinOf(ca.Cert)}
	for _, b := range [][]byte{id[:], t.secret[:]} {
		if _, err := rand.Read(b); err != nil {
			return Token{}, cfs.Token{}, cfs.E("make a token", cfs.IO, err)
		}
	}
	t.ID = hex.EncodeToString(id[:])
	return t, cfs.Token{ID: t.ID, Hash: t.Hash(), Role: role, ExpiresNS: expires.UnixNano()}, nil
}

// text is base32 in small letters: it survives being read aloud and double-clicked.
func encoding() *base32.Encoding {
	return base32.StdEncoding.WithPadding(base32.NoPadding)
}

// String is the token as people hand it on: whoever has it can enrol.
func (t Token) String() string {
	id, _ := hex.DecodeString(t.ID) // a token is made, or parsed, with an id in hex
	b := append(append(id, t.secret[:]...), t.pin[:]...)
	return tokenPrefix + strings.ToLower(encoding().EncodeToString(b))
}

// ParseToken reads a token. The error does not repeat it.
func ParseToken(text string) (Token, error) {
	const op = "token"
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return Token{}, cfs.Errorf(op, cfs.Denied, "it is none: one begins with %q", tokenPrefix)
	}
	b, err := encoding().DecodeString(strings.ToUpper(body))
	if err != nil || len(b) != tokenBytes {
		return Token{}, cfs.Errorf(op, cfs.Denied, "it is damaged, or not whole")
	}
	t := Token{ID: hex.EncodeToString(b[:idBytes])}
	copy(t.secret[:], b[idBytes:])
	copy(t.pin[:], b[idBytes+secretBytes:])
	if !strings.EqualFold(t.String(), tokenPrefix+body) {
		return Token{}, cfs.Errorf(op, cfs.Denied, "it is damaged") // bits that mean nothing are set
	}
	return t, nil
}

// Hash is what the cluster knows of the secret.
func (t Token) Hash() []byte {
	sum := sha256.Sum256(t.secret[:])
	return sum[:]
}

// Trusts checks that certs, as a server shows them, end at the authority that the token names, and is that.
func (t Token) Trusts(certs []*x509.Certificate) (*x509.Certificate, error) {
	const op = "server"
	for _, c := range certs {
		if c.IsCA && pinOf(c.Raw) == t.pin {
			return c, nil
		}
	}
	return nil, cfs.Errorf(op, cfs.Denied, "it is not of the cluster that the token is for")
}
