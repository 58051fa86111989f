package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/claudefs/claudefs/cfs"
)

const (
	// DefaultLifetime is how long a certificate is valid.
	DefaultLifetime = 90 * 24 * time.Hour
	// authorityLifetime is how long the authority is.
	authorityLifetime = 20 * 365 * 24 * time.Hour
	// backdate is how far before its signing a certificate is valid: clocks differ.
	backdate = time.Hour
	// serialBytes is the length of a serial number, which is random.
	serialBytes = 16
	// maxDER bounds a certificate or key that is read, in bytes.
	maxDER = 16 << 10
	// maxName bounds the name of a machine in a certificate, in bytes.
	maxName = 64
	// scheme is that of the URI in a certificate.
	scheme = "cfs"
)

// NewAuthority makes the authority of a cluster.
func NewAuthority(clusterID string, now time.Time) (cfs.CA, error) {
	const op = "make the cluster's authority"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cfs.CA{}, cfs.E(op, cfs.IO, err)
	}
	serial, err := newSerial()
	if err != nil {
		return cfs.CA{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "ClaudeFS " + clusterID},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLifetime),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	ca := cfs.CA{}
	if ca.Cert, err = x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key); err != nil {
		return cfs.CA{}, cfs.E(op, cfs.IO, err)
	}
	if ca.Key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return cfs.CA{}, cfs.E(op, cfs.IO, err)
	}
	return ca, nil
}

// Request is what a certificate is to say.
type Request struct {
	Who       cfs.Principal // but for what tells its certificate from others
	Name      string        // of the machine, for people
	PublicKey []byte        // DER, PKIX
	Lifetime  time.Duration // 0: DefaultLifetime
}

// Sign makes a certificate, DER. What cannot be signed is Invalid.
func Sign(ca *cfs.CA, r Request, now time.Time) ([]byte, error) {
	const op = "sign a certificate"
	issuer, err := parseCert(ca.Cert)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(ca.Key)
	if err != nil {
		return nil, err
	}
	public, err := parsePublic(r.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if r.Lifetime <= 0 {
		r.Lifetime = DefaultLifetime
	}
	until := now.Add(r.Lifetime)
	if until.After(issuer.NotAfter) {
		until = issuer.NotAfter
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: MachineName(r.Name)},
		NotBefore: now.Add(-backdate), NotAfter: until, URIs: []*url.URL{uriOf(r.Who)},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, issuer, public, key)
	if err != nil {
		return nil, cfs.E(op, cfs.Invalid, err)
	}
	return cert, nil
}

// ThisMachine is what this machine calls itself.
func ThisMachine() string {
	host, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return host
}

// MachineName is what a machine calls itself as it is kept: short, and without what is not for people's eyes.
func MachineName(name string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) || c == unicode.ReplacementChar {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(name[:min(len(name), maxName)], "?"))
}

func (r *Request) check() error {
	const op = "sign a certificate"
	w := r.Who
	switch {
	case w.Role < cfs.RoleStorage || w.Role > cfs.RoleAdmin:
		return cfs.Errorf(op, cfs.Invalid, "for role %d", w.Role)
	case (w.Role == cfs.RoleStorage) != (w.Node != 0):
		return cfs.Errorf(op, cfs.Invalid, "for node %d as %s: servers have a number, and nobody else", w.Node, w.Role)
	case w.ClusterID == "" || strings.ContainsAny(w.ClusterID, "/?#%"):
		return cfs.Errorf(op, cfs.Invalid, "for cluster %q", w.ClusterID)
	}
	return nil
}

func newSerial() (*big.Int, error) {
	b := make([]byte, serialBytes)
	if _, err := rand.Read(b); err != nil {
		return nil, cfs.E("make a serial number", cfs.IO, err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always as long
	return new(big.Int).SetBytes(b), nil
}

// uriOf is what a certificate calls its holder.
func uriOf(w cfs.Principal) *url.URL {
	return &url.URL{Scheme: scheme, Path: "/" + w.ClusterID + "/" + w.Role.String() + "/" + strconv.Itoa(int(w.Node))}
}

// principalOf is the holder of a certificate, by its one URI.
func principalOf(c *x509.Certificate) (cfs.Principal, error) {
	const op = "read a certificate"
	if c.IsCA || len(c.URIs) != 1 {
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it is not one of a ClaudeFS cluster: it has %d URIs", len(c.URIs))
	}
	u := c.URIs[0]
	parts := strings.Split(u.Path, "/")
	if u.Scheme != scheme || u.Host != "" || len(parts) != 4 {
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it is not one of a ClaudeFS cluster: it says %q", u.String())
	}
	w := cfs.Principal{ClusterID: parts[1], Role: ParseRole(parts[2]), Serial: SerialOf(c), Key: keyID(c.RawSubjectPublicKeyInfo)}
	n, err := strconv.ParseUint(parts[3], 10, 16)
	w.Node = cfs.NodeID(n)
	if err != nil || w.ClusterID == "" || (w.Role == cfs.RoleStorage) != (n != 0) || w.Role == cfs.RoleNone || uriOf(w).String() != u.String() {
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it is of nobody: it says %q", u.String())
	}
	return w, nil
}

// ParseRole is the role of that name, RoleNone for another.
func ParseRole(text string) cfs.Role {
	for r := cfs.RoleStorage; r <= cfs.RoleAdmin; r++ {
		if r.String() == text {
			return r
		}
	}
	return cfs.RoleNone
}

// KeyID is the id of a public key (DER, PKIX), which is what is revoked.
func KeyID(public []byte) (string, error) {
	key, err := parsePublic(public)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(key) // as it is in certificates
	if err != nil {
		return "", cfs.E("read a public key", cfs.Invalid, err)
	}
	return keyID(der), nil
}

func keyID(der []byte) string { return Fingerprint(der) }

// SerialOf is the serial number of a certificate as people see it.
func SerialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// Judge says who holds a certificate that a peer has shown, or why it is not trusted, with kind
// Denied. clusterID "" takes whatever cluster the authority is of.
func Judge(c, authority *x509.Certificate, clusterID string, now time.Time) (cfs.Principal, error) {
	const op = "certificate"
	if err := c.CheckSignatureFrom(authority); err != nil {
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it was not signed by this cluster's authority (fingerprint %s)", Fingerprint(authority.Raw))
	}
	w, err := principalOf(c)
	switch {
	case err != nil:
		return cfs.Principal{}, err
	case clusterID != "" && w.ClusterID != clusterID:
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it is of cluster %q, this one is %q", w.ClusterID, clusterID)
	case now.After(c.NotAfter):
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it expired at %s (key %s): enrol anew with a token", c.NotAfter.UTC().Format(time.RFC3339), w.Key)
	case now.Before(c.NotBefore):
		return cfs.Principal{}, cfs.Errorf(op, cfs.Denied, "it is valid from %s on: the clocks of the two machines differ", c.NotBefore.UTC().Format(time.RFC3339))
	}
	return w, nil
}

// Fingerprint is the SHA-256 of a certificate, or of a public key, as people compare it: the first 16 bytes in hex.
func Fingerprint(der []byte) string {
	pin := pinOf(der)
	return hex.EncodeToString(pin[:])
}

func pinOf(der []byte) (pin [pinBytes]byte) {
	sum := sha256.Sum256(der)
	copy(pin[:], sum[:])
	return pin
}

// parseCert reads a certificate, DER.
func parseCert(der []byte) (*x509.Certificate, error) {
	const op = "read a certificate"
	if len(der) == 0 || len(der) > maxDER {
		return nil, cfs.Errorf(op, cfs.Corrupt, "%d bytes", len(der))
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, cfs.E(op, cfs.Corrupt, err)
	}
	if _, ok := c.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, cfs.Errorf(op, cfs.Corrupt, "its key is not of the kind that is used here")
	}
	return c, nil
}

// parseKey reads a private key, PKCS #8.
func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	const op = "read a private key"
	if len(der) == 0 || len(der) > maxDER {
		return nil, cfs.Errorf(op, cfs.Corrupt, "%d bytes", len(der))
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, cfs.Errorf(op, cfs.Corrupt, "it is damaged") // the cause might tell of the key
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, cfs.Errorf(op, cfs.Corrupt, "it is not of the kind that is used here")
	}
	return key, nil
}

// parsePublic reads a public key that a certificate is asked for.
func parsePublic(der []byte) (*ecdsa.PublicKey, error) {
	const op = "read a public key"
	if len(der) == 0 || len(der) > maxDER {
		return nil, cfs.Errorf(op, cfs.Invalid, "%d bytes", len(der))
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, cfs.E(op, cfs.Invalid, err)
	}
	key, ok := k.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, cfs.Errorf(op, cfs.Invalid, "it is not of the kind that is used here: ECDSA on P-256")
	}
	return key, nil
}
