// Package proxy forwards TCP connections and spoils them on demand: it delays
// each direction, swallows everything (as a cut cable does, without an error to
// anybody), or closes what is open. Of connections that carry frames of package
// wire it delays, cuts or repeats single requests, as SetFates decides. One Proxy
// stands in front of one server.
package proxy
