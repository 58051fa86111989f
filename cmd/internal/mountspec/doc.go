// Package mountspec reads what mount(8) calls a source: the servers of a cluster and a directory in it.
package mountspec
