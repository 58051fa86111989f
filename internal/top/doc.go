// Package top counts what a server does, for people who look at it while it runs: how often
// each kind of operation was done and how long it took (Hist), and which directories are the
// busiest (Dirs). Counting takes some tens of nanoseconds and no memory; all of it is bounded.
package top
