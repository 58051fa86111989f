// Package wire is the one protocol that clients, storage nodes and voters
// speak: frames of a fixed header, a protobuf body and a raw payload,
// multiplexed over TCP or unix socket connections. docs/format/wire.md has
// the bytes.
//
// Calling: a Pool (or one Conn, made by Dial) sends a request and waits for
// its reply. The payload is given as slices that are written as they are; the
// reply's payload is read from the socket into memory that the caller gives.
// The context's deadline travels with the request; when the context ends
// first, the call returns and the server is told to give up. After Call has
// returned, nothing of its arguments is touched any more: a call whose payload
// or reply is on the socket at that moment waits for it, at most peerTimeout.
//
// One-way: Send writes a frame that nobody answers, from the calling goroutine
// where the socket takes it, and never waits; the server's reader hands it to
// the handler's Receive in order. It costs neither side a goroutine or a reply,
// and may be lost with its connection: Raft's messages travel so.
//
// Serving: a Server hands each request to a Handler in a goroutine of its own.
// The payload is read from the socket into memory of the configured Alloc. The
// handler's context ends with the connection, the caller's cancellation or the
// deadline. Requests in flight on a connection are bounded: the server says how
// many in its hello, callers hold back, and a caller that does not is not read
// from. So a handler may block, but a handler that never returns uses up one
// place for as long as the connection lives.
//
// Security: with a [TLS] configured TCP connections are encrypted, and Peer says by its certificate who
// the other side is; without one they are plain, and a peer is whoever it says. The certificate is judged after the handshake
// and before the hello is answered, so that a refusal is an error in words. ServerConfig.Allow decides what a
// peer may ask for before anything of the request is taken in; Cut ends connections of those who may not be here any more.
// Over a unix socket the kernel says who is there.
//
// Errors: a call fails with a *cfs.Error. One that the server answered holds a
// *RemoteError; one that the connection broke under has kind cfs.Unavailable,
// and nobody knows whether it was executed. Frames that break the protocol end
// the connection with an error naming the peer, the field and its offset in
// the stream.
//
// Reading order: frame.go (the header), reader.go and writer.go (frames on a
// socket), conn.go (calls), server.go
// (requests), oneway.go, security.go, pool.go, net.go (the one place
// where connections are made and accepted), convert*.go (cfs <-> wirepb).
package wire
