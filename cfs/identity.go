package cfs

// Role is what a certificate allows its holder.
type Role uint8

// The roles. A storage node may do all that a client may.
const (
	RoleNone    Role = iota // nothing but to enrol
	RoleStorage             // a server of the cluster
	RoleClient              // mounts
	RoleAdmin               // changes the cluster
)

// String is the form that people see and type.
func (r Role) String() string {
	switch r {
	case RoleStorage:
		return "storage"
	case RoleClient:
		return "client"
	case RoleAdmin:
		return "admin"
	}
	return "none"
}

// CA is the authority that signs the certificates of a cluster: its certificate and
// its private key, both DER (RFC 5280, PKCS #8). Off says that the cluster was made
// without: its connections are not encrypted, and everybody is who he says he is.
type CA struct {
	Cert []byte
	Key  []byte
	Off  bool
}

// Token lets one machine enrol once, before it expires. The cluster keeps the SHA-256 of
// its secret alone.
type Token struct {
	ID        string
	Hash      []byte
	Role      Role
	ExpiresNS int64
}

// Enrolled is a key that a certificate was signed for, when its token was used.
type Enrolled struct {
	Key  string // its id
	Role Role
	Node NodeID // 0 but for servers
	Name string // of the machine, as it called itself
	AtNS int64
}

// KeyDigits is the length of a key's id: the first 16 bytes of the SHA-256 of the public key
// (SubjectPublicKeyInfo, DER) in lower-case hex.
const KeyDigits = 32

// ValidKey reports that s can be a key's id.
func ValidKey(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == KeyDigits
}

// Principal is who is behind a connection, as its certificate says. Node is 0 but for servers.
// The certificate changes with each renewal, and its number with it; the key stays, and so it is what is
// revoked. Serial (in hex) and Key, which is its id, are "" without a certificate.
type Principal struct {
	ClusterID string
	Role      Role
	Node      NodeID
	Serial    string
	Key       string
}
