package pki

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/claudefs/claudefs/cfs"
)

// The seed nodes of a new cluster may share a secret before there is any certificate to trust. Neither
// side says it: each proves that it knows it, bound to the authority that the connection has shown, so
// that nobody between the two can pass a proof on.

// SeedProof is what a seed node shows node 1: that it knows the secret, and asks for this key and number.
func SeedProof(secret string, authority, publicKey []byte, id cfs.NodeID) []byte {
	return prove(secret, "claudefs seed", authority, publicKey, binary.BigEndian.AppendUint32(nil, uint32(id)))
}

// AuthorityProof is what node 1 answers: that the authority is that of whoever knows the secret.
func AuthorityProof(secret string, authority, publicKey []byte) []byte {
	return prove(secret, "claudefs node 1", authority, publicKey, nil)
}

// SameProof compares two proofs, in a time that says nothing of where they differ.
func SameProof(a, b []byte) bool { return hmac.Equal(a, b) }

// prove is a MAC of parts that cannot be cut otherwise: all but the key are of one length.
func prove(secret, what string, authority, publicKey, id []byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	ca := sha256.Sum256(authority)
	for _, part := range [][]byte{[]byte(what), ca[:], publicKey, id} {
		h.Write(part) // it never fails
	}
	return h.Sum(nil)
}
