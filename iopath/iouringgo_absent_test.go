//go:build !iouringgo

package iopath

// taggedContenders is the engines that a build tag adds to the benchmarks.
func taggedContenders() []contender { return nil }
