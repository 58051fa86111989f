package nvme

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/claudefs/claudefs/cfs"
)

const (
	logHealth   = 0x02
	healthBytes = 512
	// healthUnit is what the health log counts bytes in: thousands of 512 bytes.
	healthUnit = 512_000
)

// Health is how an NVMe device is doing: the SMART / Health Information log
// page. Counters are those of the device's whole life, and stay at the most
// that their type holds.
type Health struct {
	// Critical has a bit for each thing that is wrong: 0 spare blocks low, 1 too
	// hot or cold, 2 reliability degraded, 3 read only, 4 the backup of the
	// volatile memory has failed, 5 persistent memory is read only.
	Critical              uint8
	TemperatureCelsius    int    // of the whole; math.MinInt when the device does not say
	SparePercent          uint8  // of the spare blocks that are left
	SpareThresholdPercent uint8  // below it, bit 0 of Critical is set
	UsedPercent           uint8  // of the rated endurance; may exceed 100
	BytesRead             uint64 // by the host
	BytesWritten          uint64 // by the host
	Reads                 uint64 // commands
	Writes                uint64 // commands
	BusyMinutes           uint64
	PowerCycles           uint64
	PowerOnHours          uint64
	UnsafeShutdowns       uint64
	MediaErrors           uint64 // integrity errors that the device could not mend
	ErrorLogEntries       uint64
	WarningTempMinutes    uint32
	CriticalTempMinutes   uint32
}

// decodeHealth reads the log page. Corrupt when it is not whole.
func decodeHealth(p []byte) (Health, error) {
	if len(p) < healthBytes {
		return Health{}, cfs.Errorf("", cfs.Corrupt, "health log: %d bytes, want %d", len(p), healthBytes)
	}
	le := binary.LittleEndian
	h := Health{
		Critical:              p[0],
		TemperatureCelsius:    math.MinInt,
		SparePercent:          p[3],
		SpareThresholdPercent: p[4],
		UsedPercent:           p[5],
		BytesRead:             counter(p[32:], healthUnit),
		BytesWritten:          counter(p[48:], healthUnit),
		Reads:                 counter(p[64:], 1),
		Writes:                counter(p[80:], 1),
		BusyMinutes:           counter(p[96:], 1),
		PowerCycles:           counter(p[112:], 1),
		PowerOnHours:          counter(p[128:], 1),
		UnsafeShutdowns:       counter(p[144:], 1),
		MediaErrors:           counter(p[160:], 1),
		ErrorLogEntries:       counter(p[176:], 1),
		WarningTempMinutes:    le.Uint32(p[192:]),
		CriticalTempMinutes:   le.Uint32(p[196:]),
	}
	if kelvin := le.Uint16(p[1:]); kelvin != 0 {
		h.TemperatureCelsius = int(kelvin) - 273
	}
	return h, nil
}

// counter is a counter of 16 bytes times unit, or the most that fits.
func counter(p []byte, unit uint64) uint64 {
	le := binary.LittleEndian
	over, n := bits.Mul64(le.Uint64(p), unit)
	if over != 0 || le.Uint64(p[8:]) != 0 {
		return math.MaxUint64
	}
	return n
}

// readHealth asks a namespace's controller for its health.
func readHealth(a admin) (Health, error) {
	p := make([]byte, healthBytes)
	// The length is in dwords, less one.
	err := a.do(&adminCommand{Opcode: opGetLogPage, NSID: allNamespaces, CDW10: logHealth | (healthBytes/4-1)<<16}, p)
	if err != nil {
		return Health{}, err
	}
	return decodeHealth(p)
}
