// Package pki is who is who in a cluster: its authority (CA), the certificates that it
// signs, the tokens by which a machine gets one, and the directory that a machine
// keeps its own in. It knows no connections: wire carries what it makes.
//
// A certificate says in one URI what its holder is: cfs:///CLUSTER/ROLE/NODE, NODE
// being 0 but for servers. Keys are ECDSA on P-256. The authority is a certificate of its
// own, signed by itself; there is nothing between it and the others.
//
// Who trusts whom: a peer is trusted when its certificate was signed by the authority, its
// time is now, and its URI names the cluster ([Judge]). Nothing else of X.509 counts: no
// host names (servers are known by number, and addresses change), no lists of the system.
// Which keys are refused, the cluster's map says.
//
// A token is what a machine without a certificate shows, once: its id, its secret, and the
// first bytes of the SHA-256 of the authority's certificate, by which the machine knows whom
// to tell the secret. Before there is any token, the seed nodes of a new cluster may share a secret, which each
// proves to know ([SeedProof], [AuthorityProof]).
//
// Reading order: cert.go, token.go, bootstrap.go, store.go.
package pki
