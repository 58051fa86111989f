package cfs

import (
	"errors"
	"fmt"
	"syscall"
)

// Kind classifies an error. The numbers are stable: they are on the wire and in
// the replicated replies. Kind is itself an error, so errors.Is(err, cfs.NotFound) works.
type Kind uint8

// The kinds. The first group are answers of POSIX, the second of the system.
const (
	KindOK Kind = iota
	NotFound
	Exists
	NotDir
	IsDir
	NotEmpty
	Invalid
	Permission   // EPERM: this is not allowed to anybody without privilege
	Access       // EACCES: the mode bits say no
	NameTooLong  // ENAMETOOLONG
	TooManyLinks // EMLINK
	NoSpace      // ENOSPC
	TooLarge     // EFBIG
	NoAttr       // ENODATA: no such extended attribute
	Range        // ERANGE
	Unsupported  // EOPNOTSUPP
	CrossDevice  // EXDEV
	Loop         // ELOOP
	Busy         // EBUSY
	Stale        // ESTALE: the inode is gone
	Deadlock     // EDEADLK
	ReadOnly     // EROFS
	TooBig       // E2BIG

	// IO is a failure of hardware or below: EIO.
	IO
	// Corrupt is bytes whose checksum, length or version is wrong.
	Corrupt
	// Unavailable is a peer that cannot be reached or has no leader: try again.
	Unavailable
	// NotLeader is a voter that does not lead: try the one named.
	NotLeader
	// StaleEpoch is a put or commit under an epoch that has passed: put again.
	StaleEpoch
	// BelowFloor is a stripe id below its session's floor: put again under a new id.
	BelowFloor
	// NoSession is a session that is unknown or has expired.
	NoSession
	// Replayed is a sequence below the session's low-water mark.
	Replayed
	// Conflict is a compare-and-swap whose expectation does not hold.
	Conflict
	// InlineFull is a refusal of inline bytes above the cluster's bound: use a stripe.
	InlineFull
	// WrongCluster is a peer or device of another cluster.
	WrongCluster
	// BadRequest is a message that breaks the protocol.
	BadRequest
	// Timeout is a deadline that passed.
	Timeout
	// Canceled is a request that its caller gave up.
	Canceled
	// Overloaded is a bounded queue that is full: try again later.
	Overloaded
	// Closed is a use after Close.
	Closed
	// Usage is a wrong command line or configuration: exit status 2.
	Usage
	// Locked is a lock that is in the way: EAGAIN.
	Locked
	// NoLease is a change under an exclusive lease that the session does not have any more.
	NoLease
	// Denied is a peer whose certificate, token or role does not allow what it asks for.
	Denied
	// TooManyLocks is a bound of the table of locks: ENOLCK.
	TooManyLocks

	kindEnd
)

type kindInfo struct {
	name  string
	text  string
	errno syscall.Errno
}

// kinds is the one errno table.
var kinds = [kindEnd]kindInfo{
	KindOK:       {"ok", "success", 0},
	NotFound:     {"not_found", "no such file or directory", syscall.ENOENT},
	Exists:       {"exists", "file exists", syscall.EEXIST},
	NotDir:       {"not_dir", "not a directory", syscall.ENOTDIR},
	IsDir:        {"is_dir", "is a directory", syscall.EISDIR},
	NotEmpty:     {"not_empty", "directory not empty", syscall.ENOTEMPTY},
	Invalid:      {"invalid", "invalid argument", syscall.EINVAL},
	Permission:   {"permission", "operation not permitted", syscall.EPERM},
	Access:       {"access", "permission denied", syscall.EACCES},
	NameTooLong:  {"name_too_long", "file name too long", syscall.ENAMETOOLONG},
	TooManyLinks: {"too_many_links", "too many links", syscall.EMLINK},
	NoSpace:      {"no_space", "no space left", syscall.ENOSPC},
	TooLarge:     {"too_large", "file too large", syscall.EFBIG},
	NoAttr:       {"no_attr", "no such attribute", syscall.ENODATA},
	Range:        {"range", "result out of range", syscall.ERANGE},
	Unsupported:  {"unsupported", "operation not supported", syscall.EOPNOTSUPP},
	CrossDevice:  {"cross_device", "cross-device link", syscall.EXDEV},
	Loop:         {"loop", "too many levels of symbolic links", syscall.ELOOP},
	Busy:         {"busy", "busy", syscall.EBUSY},
	Stale:        {"stale", "stale file handle", syscall.ESTALE},
	Deadlock:     {"deadlock", "resource deadlock avoided", syscall.EDEADLK},
	ReadOnly:     {"read_only", "read-only file system", syscall.EROFS},
	TooBig:       {"too_big", "argument list too long", syscall.E2BIG},
	IO:           {"io", "input/output error", syscall.EIO},
	Corrupt:      {"corrupt", "corrupt data", syscall.EIO},
	Unavailable:  {"unavailable", "unavailable", syscall.EHOSTUNREACH},
	NotLeader:    {"not_leader", "not the leader", syscall.EAGAIN},
	StaleEpoch:   {"stale_epoch", "epoch has passed", syscall.EIO},
	BelowFloor:   {"below_floor", "stripe id below the session's floor", syscall.EIO},
	NoSession:    {"no_session", "session unknown or expired", syscall.EIO},
	Replayed:     {"replayed", "sequence below the low-water mark", syscall.EIO},
	Conflict:     {"conflict", "expectation does not hold", syscall.EAGAIN},
	InlineFull:   {"inline_full", "no room for inline data", syscall.ENOSPC},
	WrongCluster: {"wrong_cluster", "belongs to another cluster", syscall.EIO},
	BadRequest:   {"bad_request", "malformed message", syscall.EPROTO},
	Timeout:      {"timeout", "timed out", syscall.ETIMEDOUT},
	Canceled:     {"canceled", "canceled", syscall.EINTR},
	Overloaded:   {"overloaded", "queue full", syscall.EAGAIN},
	Closed:       {"closed", "closed", syscall.EBADF},
	Usage:        {"usage", "usage", syscall.EINVAL},
	Locked:       {"locked", "a lock is in the way", syscall.EAGAIN},
	NoLease:      {"no_lease", "the exclusive lease is gone", syscall.EIO},
	Denied:       {"denied", "not allowed for this peer", syscall.EACCES},
	TooManyLocks: {"too_many_locks", "too many locks", syscall.ENOLCK},
}

// Valid reports that k is a kind of this version.
func (k Kind) Valid() bool { return k < kindEnd }

// Name is the kind's stable identifier, as in metric labels.
func (k Kind) Name() string {
	if !k.Valid() {
		return fmt.Sprintf("kind_%d", uint8(k))
	}
	return kinds[k].name
}

// Error is the kind's text.
func (k Kind) Error() string {
	if !k.Valid() {
		return fmt.Sprintf("error kind %d of a newer version", uint8(k))
	}
	return kinds[k].text
}

// Errno is the kind as the kernel says it; EIO for kinds of a newer version.
func (k Kind) Errno() syscall.Errno {
	if !k.Valid() {
		return syscall.EIO
	}
	return kinds[k].errno
}

// Error is the one error type: what was attempted, how it failed, and why.
type Error struct {
	Op   string // what was attempted, with its object: "put shard 7.3/2 on 1/0"
	Kind Kind
	Err  error // the cause, nil for none
}

// E makes an Error of kind k.
func E(op string, k Kind, cause error) *Error { return &Error{Op: op, Kind: k, Err: cause} }

// Errorf makes an Error of kind k whose cause is the formatted text (%w works).
func Errorf(op string, k Kind, format string, args ...any) *Error {
	return &Error{Op: op, Kind: k, Err: fmt.Errorf(format, args...)}
}

// Error joins operation, kind and cause.
func (e *Error) Error() string {
	s := e.Kind.Error()
	if e.Err != nil {
		s = e.Err.Error()
		if KindOf(e.Err) != e.Kind {
			s = e.Kind.Error() + ": " + s
		}
	}
	if e.Op == "" {
		return s
	}
	return e.Op + ": " + s
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches a Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// KindOf classifies any error: nil is KindOK, an Error or a Kind says so
// itself, a system error by the errno table, everything else is IO.
func KindOf(err error) Kind {
	if err == nil {
		return KindOK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		for k := KindOK + 1; k < kindEnd; k++ {
			if kinds[k].errno == no {
				return k
			}
		}
	}
	return IO
}

// Errno is the errno that the kernel is told of err; 0 for nil.
func Errno(err error) syscall.Errno {
	var e *Error
	var k Kind
	var no syscall.Errno
	if !errors.As(err, &e) && !errors.As(err, &k) && errors.As(err, &no) {
		return no
	}
	return KindOf(err).Errno()
}
