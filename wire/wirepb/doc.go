// Package wirepb is the protobuf bodies of frames, generated from wire.proto.
// Nothing but the services and package wire, which converts to and from the
// types of package cfs, uses it.
package wirepb
