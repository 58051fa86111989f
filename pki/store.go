package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

// The files of a store. Each is one PEM block.
const (
	keyFile          = "key.pem"  // the machine's private key
	certFile         = "cert.pem" // its certificate
	authorityFile    = "ca.pem"   // the authority's certificate
	authorityKeyFile = "ca-key.pem"

	certType = "CERTIFICATE"
	keyType  = "PRIVATE KEY"

	maxFileBytes = 64 << 10
	// lockPause is how often it is tried to lock a directory that another process has locked.
	lockPause = 50 * time.Millisecond
)

// Identity is a certificate with its key, and the authority that signed it.
type Identity struct {
	Who       cfs.Principal
	Cert      *x509.Certificate
	Authority *x509.Certificate
	key       *ecdsa.PrivateKey
}

// RenewAt is when two thirds of the certificate's life are over.
func (i *Identity) RenewAt() time.Time {
	signed := i.Cert.NotBefore.Add(backdate)
	return signed.Add(i.Cert.NotAfter.Sub(signed) / 3 * 2)
}

// Expired reports that the certificate is of no use any more.
func (i *Identity) Expired(now time.Time) bool { return now.After(i.Cert.NotAfter) }

// Store is the directory in which a machine keeps its identity, for any number of goroutines.
type Store struct {
	dir     string
	mu      sync.Mutex // held while files change
	fresh   []byte     // PKCS #8: the key that the next certificate may be for instead of the one that is kept
	present atomic.Pointer[Identity]
}

// OpenStore opens the directory, which is made if it is missing, and reads the
// identity that is there, if any. One that is damaged is Corrupt.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, cfs.E("identity in "+dir, cfs.KindOf(err), err)
	}
	if fi, err := os.Stat(dir); err == nil && fi.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, cfs.E("identity in "+dir, cfs.KindOf(err), err)
		}
	}
	return s, s.Reload()
}

// Exists reports that a directory has an identity.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, certFile))
	return err == nil
}

// Dir is the directory.
func (s *Store) Dir() string { return s.dir }

// Identity is what the store has; nil for nothing.
func (s *Store) Identity() *Identity { return s.present.Load() }

// Lock keeps other processes, and other stores of this one, from enrolling in the directory until unlock is
// called, and reads it again: somebody else may have enrolled.
func (s *Store) Lock(ctx context.Context) (unlock func(), err error) {
	op := "lock the identity in " + s.dir
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		select {
		case <-time.After(lockPause):
			continue
		case <-ctx.Done():
			err = cfs.Errorf(op, cfs.Busy, "somebody else has been enrolling there for long")
		}
		break
	}
	if err == nil {
		err = s.Reload()
	}
	if err != nil {
		return nil, errors.Join(cfs.E(op, cfs.KindOf(err), err), d.Close())
	}
	return func() { _ = d.Close() }, nil // it was only read
}

// Reload reads the directory again.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.load()
	if err == nil {
		s.present.Store(id)
	}
	return err
}

func (s *Store) load() (*Identity, error) {
	cert, err := s.read(certFile, certType)
	if err != nil || cert == nil {
		return nil, err
	}
	authority, err := s.read(authorityFile, certType)
	if err != nil {
		return nil, err
	}
	key, err := s.read(keyFile, keyType)
	if err != nil {
		return nil, err
	}
	id, err := newIdentity(cert, authority, key)
	if err != nil {
		return nil, cfs.E("identity in "+s.dir, cfs.KindOf(err), err)
	}
	return id, nil
}

// newIdentity checks that the three belong together.
func newIdentity(cert, authority, key []byte) (*Identity, error) {
	var id Identity
	var err error
	if id.Cert, err = parseCert(cert); err != nil {
		return nil, err
	}
	if id.Authority, err = parseCert(authority); err != nil {
		return nil, err
	}
	if id.key, err = parseKey(key); err != nil {
		return nil, err
	}
	if !id.key.PublicKey.Equal(id.Cert.PublicKey) {
		return nil, cfs.Errorf("", cfs.Corrupt, "the certificate is of another key")
	}
	if err := id.Cert.CheckSignatureFrom(id.Authority); err != nil {
		return nil, cfs.Errorf("", cfs.Corrupt, "the certificate is of another authority")
	}
	if id.Who, err = principalOf(id.Cert); err != nil {
		return nil, cfs.E("", cfs.Corrupt, err)
	}
	return &id, nil
}

// PublicKey is the machine's public key (DER, PKIX), of a private one that is made and kept where there is none.
func (s *Store) PublicKey() ([]byte, error) {
	op := "key in " + s.dir
	s.mu.Lock()
	defer s.mu.Unlock()
	der, err := s.read(keyFile, keyType)
	if err != nil {
		return nil, err
	}
	if der == nil {
		if der, err = newKey(); err == nil {
			err = s.write(keyFile, keyType, der)
		}
		if err != nil {
			return nil, cfs.E(op, cfs.KindOf(err), err)
		}
	}
	return publicOf(op, der)
}

// FreshKey is the public key of a new private one. It takes the place of the one that is kept when Save keeps a
// certificate for it.
func (s *Store) FreshKey() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	der, err := newKey()
	if err != nil {
		return nil, err
	}
	s.fresh = der
	return publicOf("key in "+s.dir, der)
}

// newKey makes a private key, PKCS #8.
func newKey() ([]byte, error) {
	const op = "make a key"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, cfs.E(op, cfs.IO, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, cfs.E(op, cfs.IO, err)
	}
	return der, nil
}

// publicOf is the public key (DER, PKIX) of a private one (PKCS #8).
func publicOf(op string, der []byte) ([]byte, error) {
	key, err := parseKey(der)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, cfs.E(op, cfs.IO, err)
	}
	return public, nil
}

// Save keeps a certificate for the machine's key, and the authority's (DER). It is used from then on.
func (s *Store) Save(cert, authority []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := s.read(keyFile, keyType)
	if err != nil {
		return err
	}
	if s.fresh != nil {
		if id, err := newIdentity(cert, authority, s.fresh); err == nil {
			return s.replace(id)
		}
	}
	id, err := newIdentity(cert, authority, key)
	if err != nil {
		return cfs.E("identity in "+s.dir, cfs.KindOf(err), err)
	}
	return s.keep(id)
}

// replace keeps an identity with the fresh key. The caller holds s.mu.
func (s *Store) replace(id *Identity) error {
	// The old certificate first, which does not fit the new key: a crash in between leaves no identity.
	path := filepath.Join(s.dir, certFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cfs.E(path, cfs.KindOf(err), err)
	}
	if err := s.write(keyFile, keyType, s.fresh); err != nil {
		return err
	}
	s.fresh = nil
	return s.keep(id)
}

// keep keeps an identity whose key is there. The caller holds s.mu.
func (s *Store) keep(id *Identity) error {
	cert, authority := id.Cert.Raw, id.Authority.Raw
	// The certificate last: it is what says that there is an identity.
	if err := s.write(authorityFile, certType, authority); err != nil {
		return err
	}
	if err := s.write(certFile, certType, cert); err != nil {
		return err
	}
	s.present.Store(id)
	return nil
}

// Authority is the authority with its key, which the first server of a cluster keeps; the zero CA for none.
func (s *Store) Authority() (cfs.CA, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := s.read(authorityKeyFile, keyType)
	if err != nil || key == nil {
		return cfs.CA{}, err
	}
	cert, err := s.read(authorityFile, certType)
	if err != nil {
		return cfs.CA{}, err
	}
	return cfs.CA{Cert: cert, Key: key}, nil
}

// SaveAuthority keeps the authority.
func (s *Store) SaveAuthority(ca *cfs.CA) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(authorityFile, certType, ca.Cert); err != nil {
		return err
	}
	return s.write(authorityKeyFile, keyType, ca.Key)
}

// Config is how to make and take TLS connections with the present identity, without one
// where there is none. It does not judge the peer: its user does, before anything else is said.
func (s *Store) Config() *tls.Config {
	c := Anonymous()
	if id := s.Identity(); id != nil {
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{id.Cert.Raw, id.Authority.Raw}, PrivateKey: id.key, Leaf: id.Cert}}
	}
	return c
}

// Anonymous is Config without an identity.
func Anonymous() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The peer is judged after the handshake, so that a refusal can be said in words.
		ClientAuth: tls.RequestClientCert, InsecureSkipVerify: true,
		SessionTicketsDisabled:      true, // each connection proves anew who is there
		DynamicRecordSizingDisabled: true,
	}
}

// Judge says who a peer is by the certificates that it has shown, the first of which is its own.
func (s *Store) Judge(certs []*x509.Certificate, now time.Time) (cfs.Principal, error) {
	id := s.Identity()
	if id == nil {
		return cfs.Principal{}, cfs.Errorf("certificate", cfs.Denied, "this machine has no identity to judge it by")
	}
	return Judge(certs[0], id.Authority, id.Who.ClusterID, now)
}

// read is the bytes in a file; nil if there is none.
func (s *Store) read(name, blockType string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, cfs.E(path, cfs.KindOf(err), err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, cfs.E(path, cfs.Corrupt, err)
	}
	der, err := parsePEM(raw, blockType)
	if err != nil {
		return nil, cfs.E(path, cfs.Corrupt, err)
	}
	return der, nil
}

// parsePEM is the content of the one block that a file has.
func parsePEM(raw []byte, blockType string) ([]byte, error) {
	b, rest := pem.Decode(raw)
	if b == nil || b.Type != blockType || len(rest) > 0 || len(b.Bytes) == 0 || len(b.Bytes) > maxDER {
		return nil, cfs.Errorf("", cfs.Corrupt, "it is not one PEM block %q", blockType)
	}
	return b.Bytes, nil
}

// write replaces a file so that a crash leaves the old or the new.
func (s *Store) write(name, blockType string, der []byte) error {
	path := filepath.Join(s.dir, name)
	if err := durable.Replace(path, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})); err != nil {
		return cfs.E(path, cfs.KindOf(err), err)
	}
	return nil
}
