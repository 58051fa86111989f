package nvme

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"os"
	"strings"

	"github.com/claudefs/claudefs/cfs"
)

// What the NVMe Base Specification calls the things that are used here.
const (
	opGetLogPage = 0x02 // admin
	opIdentify   = 0x06 // admin

	cnsNamespace   = 0x00
	cnsController  = 0x01
	cnsDescriptors = 0x03

	identifyBytes     = 4096
	leastLogicalBlock = 512
	allNamespaces     = 0xffffffff

	descEUI64    = 1
	descNGUID    = 2
	descCommands = 4 // the command set of the namespace; 0 is that of block storage
)

// controller is what Identify Controller says that matters here.
type controller struct {
	model, serial string
	maxTransfer   int       // bytes, at the least page size there is; 0 for no limit
	deallocates   bool      // has Dataset Management
	volatileCache bool      // a write may be lost without a flush or FUA
	retryDelays   [3]uint16 // what the answers mean by a delay of 1, 2, 3: units of 100 ms
}

// decodeController reads the answer to Identify Controller. Corrupt when it is
// not whole. Nothing in it is believed beyond its type's range.
func decodeController(p []byte) (controller, error) {
	if len(p) < identifyBytes {
		return controller{}, cfs.Errorf("", cfs.Corrupt, "identify controller: %d bytes, want %d", len(p), identifyBytes)
	}
	le := binary.LittleEndian
	c := controller{
		serial:        printable(p[4:24]),
		model:         printable(p[24:64]),
		deallocates:   le.Uint16(p[520:])&(1<<2) != 0,
		volatileCache: p[525]&1 != 0,
		retryDelays:   [3]uint16{le.Uint16(p[128:]), le.Uint16(p[130:]), le.Uint16(p[132:])},
	}
	// A power of two of the controller's least page, which is 4 KiB or more.
	if mdts := p[77]; mdts > 0 && mdts < 18 {
		c.maxTransfer = cfs.BlockSize << mdts
	}
	return c, nil
}

// printable is a padded field of ASCII.
func printable(p []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(p)))
}

// namespace is what Identify Namespace and the namespace's descriptors say
// that matters here.
type namespace struct {
	blocks          uint64 // logical
	blockBytes      int    // a power of two, at least leastLogicalBlock
	metadataBytes   int    // beside each logical block
	writeProtected  bool
	identity        Identity
	commandSet      uint8 // 0 for block storage
	deallocateBytes int   // the preferred granularity
}

// decodeNamespace reads the answer to Identify Namespace. Corrupt when it is
// not whole or says what cannot be.
func decodeNamespace(p []byte) (namespace, error) {
	if len(p) < identifyBytes {
		return namespace{}, cfs.Errorf("", cfs.Corrupt, "identify namespace: %d bytes, want %d", len(p), identifyBytes)
	}
	le := binary.LittleEndian
	// The format in use: four bits, and two more where there are more than 16 formats.
	format := int(p[26] & 0x0f)
	if p[25] > 15 {
		format |= int(p[26]>>5&3) << 4
	}
	lbaf := p[128+4*format:]
	shift := lbaf[2]
	if shift < 9 || shift > 30 {
		return namespace{}, cfs.Errorf("", cfs.Corrupt, "identify namespace: logical blocks of 2^%d bytes", shift)
	}
	ns := namespace{
		blocks:         le.Uint64(p),
		blockBytes:     1 << shift,
		metadataBytes:  int(le.Uint16(lbaf)),
		writeProtected: p[99]&1 != 0,
	}
	if ns.blocks > math.MaxInt64>>shift {
		return namespace{}, cfs.Errorf("", cfs.Corrupt, "identify namespace: %d logical blocks of %d bytes", ns.blocks, ns.blockBytes)
	}
	ns.deallocateBytes = ns.blockBytes
	if p[24]&(1<<4) != 0 { // the optional performance fields are there
		ns.deallocateBytes = ns.blockBytes * (1 + int(le.Uint16(p[68:])))
	}
	copy(ns.identity[:], p[104:120]) // NGUID
	if ns.identity == (Identity{}) {
		copy(ns.identity[:], p[120:128]) // EUI64
	}
	return ns, nil
}

// decodeDescriptors reads the answer to the descriptor list's Identify into ns:
// an identity where it has none yet, and the command set. What is not known
// here is skipped; Corrupt when a descriptor has a length that cannot be.
func decodeDescriptors(p []byte, ns *namespace) error {
	var eui Identity
	for len(p) >= 4 && p[1] != 0 {
		kind, n := p[0], int(p[1])
		if n > len(p)-4 || kind == descEUI64 && n != 8 || kind == descNGUID && n != 16 || kind == descCommands && n != 1 {
			return cfs.Errorf("", cfs.Corrupt, "namespace descriptors: one of type %d and %d bytes", kind, n)
		}
		value := p[4 : 4+n]
		switch {
		case kind == descEUI64:
			copy(eui[:], value)
		case kind == descNGUID && ns.identity == (Identity{}):
			copy(ns.identity[:], value)
		case kind == descCommands:
			ns.commandSet = value[0]
		}
		p = p[4+n:]
	}
	if ns.identity == (Identity{}) {
		ns.identity = eui
	}
	return nil
}

// usable refuses a namespace whose format is not served here.
func (ns *namespace) usable() error {
	switch {
	case ns.commandSet != 0:
		return cfs.Errorf("", cfs.Invalid, "its command set is %d: only the one of block storage, 0, can be used", ns.commandSet)
	case ns.blocks == 0:
		return cfs.Errorf("", cfs.Invalid, "the namespace is not active")
	case ns.blockBytes > cfs.BlockSize:
		return cfs.Errorf("", cfs.Invalid, "its logical blocks are of %d bytes; at most %d can be used", ns.blockBytes, cfs.BlockSize)
	case ns.metadataBytes != 0:
		return cfs.Errorf("", cfs.Invalid, "it is formatted with %d bytes of metadata beside each block: format it without", ns.metadataBytes)
	case ns.writeProtected:
		return cfs.Errorf("", cfs.ReadOnly, "the namespace is write protected")
	}
	return nil
}

// shift is the binary logarithm of the logical block size.
func (ns *namespace) shift() uint { return uint(bits.TrailingZeros64(uint64(ns.blockBytes))) }

// admin sends an admin command with its data, and is done when the device has
// answered with success. A real one is made by adminOf.
type admin struct {
	nsid uint32
	send func(c *adminCommand, p []byte) (status int32, err error)
	err  error // there is no way to send anything
}

// adminOf sends admin commands through the file of a namespace, which may be
// its block or its character device.
func adminOf(f *os.File) admin {
	a := admin{send: func(c *adminCommand, p []byte) (status int32, err error) {
		err = control(f, func(fd uintptr) (err error) {
			status, err = sendAdmin(fd, c, p)
			return err
		})
		return status, err
	}}
	a.err = control(f, func(fd uintptr) (err error) {
		a.nsid, err = namespaceID(fd)
		return err
	})
	return a
}

func (a *admin) do(c *adminCommand, p []byte) error {
	if a.err != nil {
		return a.err
	}
	status, err := a.send(c, p)
	if err != nil {
		return err
	}
	return statusError(status)
}

func (a *admin) identify(cns, nsid uint32) ([]byte, error) {
	p := make([]byte, identifyBytes)
	err := a.do(&adminCommand{Opcode: opIdentify, NSID: nsid, CDW10: cns}, p)
	return p, err
}

// identify asks a namespace what it is.
func identify(a admin) (namespace, error) {
	p, err := a.identify(cnsNamespace, a.nsid)
	if err != nil {
		return namespace{}, cfs.Errorf("identify namespace", cfs.KindOf(err), "%w", err)
	}
	ns, err := decodeNamespace(p)
	if err != nil {
		return namespace{}, err
	}
	// Devices older than version 1.3 do not have the list: what they have is above.
	if p, err := a.identify(cnsDescriptors, a.nsid); err == nil && !bytes.Equal(p, make([]byte, len(p))) {
		if err := decodeDescriptors(p, &ns); err != nil {
			return namespace{}, err
		}
	}
	return ns, nil
}

// identifyController asks the controller of a namespace what it is.
func identifyController(a admin) (controller, error) {
	p, err := a.identify(cnsController, 0)
	if err != nil {
		return controller{}, cfs.Errorf("identify controller", cfs.KindOf(err), "%w", err)
	}
	return decodeController(p)
}
