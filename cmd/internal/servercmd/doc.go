// Package servercmd is the command line of a server: `cfs server` and
// `cfs-storaged` are the same command under two names.
package servercmd
