// Package proxy forwards TCP connections and spoils them on demand: it delays
// each direction, swallows everything (as a cut cable does, without an error to
// anybody), or closes what is open. One Proxy stands in front of one server.
package proxy
