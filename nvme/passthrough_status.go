package nvme

import (
	"fmt"
	"time"

	"github.com/claudefs/claudefs/cfs"
)

// The parts of a status as the driver hands it on.
const (
	statusCode       = 0x7ff  // the code, and its type above it
	statusDelayShift = 11     // which of the controller's retry delays, 0 for none
	statusNoRetry    = 0x4000 // the same command would fail again
)

// status says what one status code means.
type status struct {
	name  string
	kind  cfs.Kind
	again bool // worth another try when the device does not forbid it
}

// statuses are the codes that the commands used here can be answered with, by
// type << 8 | code. Names are those of the NVMe Base Specification.
var statuses = map[int32]status{
	0x001: {"invalid command opcode", cfs.Unsupported, false},
	0x002: {"invalid field in command", cfs.Invalid, false},
	0x003: {"command ID conflict", cfs.IO, true},
	0x004: {"data transfer error", cfs.IO, true},
	0x005: {"aborted due to power loss notification", cfs.IO, false},
	0x006: {"internal error", cfs.IO, true},
	0x007: {"command abort requested", cfs.IO, true},
	0x008: {"aborted due to SQ deletion", cfs.IO, true},
	0x00b: {"invalid namespace or format", cfs.Invalid, false},
	0x013: {"invalid PRP offset", cfs.Invalid, false},
	0x01c: {"sanitize failed", cfs.IO, false},
	0x01d: {"sanitize in progress", cfs.IO, false},
	0x020: {"namespace is write protected", cfs.ReadOnly, false},
	0x021: {"command interrupted", cfs.IO, true},
	0x022: {"transient transport error", cfs.IO, true},
	0x023: {"command prohibited by lockdown", cfs.Permission, false},
	0x024: {"admin command media not ready", cfs.IO, true},
	0x080: {"LBA out of range", cfs.Invalid, false},
	0x081: {"capacity exceeded", cfs.NoSpace, false},
	0x082: {"namespace not ready", cfs.IO, true},
	0x083: {"reservation conflict", cfs.Busy, false},
	0x084: {"format in progress", cfs.IO, true},
	0x109: {"invalid log page", cfs.Unsupported, false},
	0x180: {"conflicting attributes", cfs.Invalid, false},
	0x181: {"invalid protection information", cfs.Invalid, false},
	0x182: {"attempted write to read only range", cfs.ReadOnly, false},
	0x183: {"command size limit exceeded", cfs.Invalid, false},
	0x280: {"write fault", cfs.IO, false},
	0x281: {"unrecovered read error", cfs.IO, false},
	0x282: {"end-to-end guard check error", cfs.Corrupt, false},
	0x283: {"end-to-end application tag check error", cfs.Corrupt, false},
	0x284: {"end-to-end reference tag check error", cfs.Corrupt, false},
	0x285: {"compare failure", cfs.Conflict, false},
	0x286: {"access denied", cfs.Access, false},
	0x287: {"deallocated or unwritten logical block", cfs.IO, false},
	0x300: {"internal path error", cfs.IO, true},
	0x301: {"asymmetric access persistent loss", cfs.IO, false},
	0x302: {"asymmetric access inaccessible", cfs.IO, true},
	0x303: {"asymmetric access transition", cfs.IO, true},
	0x360: {"controller pathing error", cfs.IO, true},
	0x370: {"host pathing error", cfs.IO, true},
	0x371: {"command aborted by host", cfs.IO, true},
}

// statusError is a device's answer as an error, nil for success.
func statusError(raw int32) error {
	code := raw & statusCode
	if code == 0 {
		return nil
	}
	s, known := statuses[code]
	if !known {
		s = status{name: "a status that is not known here", kind: cfs.IO}
	}
	return cfs.Errorf(fmt.Sprintf("NVMe status %#03x", code), s.kind, "%s", s.name)
}

// retryable reports that a command which was answered so may succeed if it is
// sent again, and after which delay, if the device asks for one.
func (c *controller) retryable(raw int32) (time.Duration, bool) {
	if raw&statusNoRetry != 0 || !statuses[raw&statusCode].again {
		return 0, false
	}
	var delay time.Duration
	if which := raw >> statusDelayShift & 3; which > 0 {
		delay = time.Duration(c.retryDelays[which-1]) * 100 * time.Millisecond
	}
	return delay, true
}
