package nvme

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/iopath"
)

// fakeNamespace is an NVMe namespace in memory, and the engine that it is reached by.
type fakeNamespace struct {
	nsid       uint32
	blockBytes int
	mdts       uint8
	cache      bool   // volatile
	namespace  []byte // answers to Identify
	controller []byte
	list       []byte // of descriptors; nil for none
	noAdmin    error  // the answer to every admin command

	mu      sync.Mutex
	data    []byte
	holder  bool
	paused  []time.Duration    // between tries
	batches [][]iopath.Command // what was sent, without the data
	// onCommand may answer a command: an error of the kernel, or a status.
	onCommand func(cmd *iopath.Command) (int32, error)
}

// newFakeNamespace is a namespace of suiteBytes with an EUI64 and no NGUID.
func newFakeNamespace(blockBytes int) *fakeNamespace {
	n := &fakeNamespace{
		nsid: 3, blockBytes: blockBytes, mdts: 6, cache: true, data: make([]byte, suiteBytes),
		namespace: make([]byte, identifyBytes), controller: make([]byte, identifyBytes),
	}
	le := binary.LittleEndian
	le.PutUint64(n.namespace, uint64(len(n.data)/blockBytes))
	n.namespace[25], n.namespace[26] = 1, 1                                  // two formats, the second in use
	n.namespace[128+4*1+2] = byte(map[int]int{512: 9, 4096: 12}[blockBytes]) // its size
	copy(n.namespace[120:], "\x52\x54\x00\x01\x02\x03\x04\x05")
	copy(n.controller[4:24], "serial              ")
	copy(n.controller[24:64], "model of a device                       ")
	n.controller[77] = n.mdts
	le.PutUint16(n.controller[520:], 1<<2)
	n.controller[525] = 1
	return n
}

// open makes a device of it.
func (n *fakeNamespace) open(time.Duration) (Device, error) {
	n.mu.Lock()
	held := n.holder
	n.holder = true
	n.mu.Unlock()
	if held {
		return nil, cfs.Errorf("open device fake", cfs.Busy, "in use")
	}
	d := &passthrough{info: Info{Path: "fake"}, adm: admin{nsid: n.nsid, send: n.admin}, eng: n, cmdr: n}
	d.pause = func(wait time.Duration) { n.paused = append(n.paused, wait) }
	if err := d.start(blockInfo{maxTransferBytes: 127 * 4096, discardMaxBytes: 1 << 20}); err != nil {
		n.mu.Lock()
		n.holder = false
		n.mu.Unlock()
		return nil, err
	}
	return d, nil
}

func (n *fakeNamespace) admin(c *adminCommand, p []byte) (int32, error) {
	if n.noAdmin != nil {
		return 0, n.noAdmin
	}
	clear(p)
	switch {
	case c.Opcode == opIdentify && c.CDW10 == cnsNamespace && c.NSID == n.nsid:
		copy(p, n.namespace)
	case c.Opcode == opIdentify && c.CDW10 == cnsController:
		copy(p, n.controller)
	case c.Opcode == opIdentify && c.CDW10 == cnsDescriptors && c.NSID == n.nsid && n.list != nil:
		copy(p, n.list)
	case c.Opcode == opGetLogPage && c.CDW10 == 0x007f0002 && c.NSID == 0xffffffff && len(p) == 512:
		p[1], p[2], p[3] = 0x2c, 0x01, 90 // 300 K, 90 % spare
	default:
		return 0x4002, nil
	}
	return 0, nil
}

func (n *fakeNamespace) RegisterFile(*os.File) (iopath.File, error) { return iopath.File{}, nil }

func (n *fakeNamespace) UnregisterFile(iopath.File) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.holder = false
	return nil
}

func (n *fakeNamespace) Read(iopath.File, []byte, int64) (int, error) {
	return 0, errors.New("not a file")
}
func (n *fakeNamespace) ReadMany(iopath.File, []iopath.ReadOp) error { return errors.New("not a file") }
func (n *fakeNamespace) WriteMany(iopath.File, []iopath.WriteOp) error {
	return errors.New("not a file")
}
func (n *fakeNamespace) Fdatasync(iopath.File) error { return errors.New("not a file") }
func (n *fakeNamespace) Close() error                { return nil }

// Commands does what a device does.
func (n *fakeNamespace) Commands(_ iopath.File, set iopath.CommandSet, cmds []iopath.Command) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.holder {
		return cfs.E("NVMe command", cfs.Closed, nil)
	}
	if set != iopath.CommandIO {
		return syscall.ENOTTY
	}
	if n.batches != nil {
		n.batches = append(n.batches, append([]iopath.Command(nil), cmds...))
	}
	var first error
	for i := range cmds {
		status, err := int32(0), error(nil)
		if n.onCommand != nil {
			status, err = n.onCommand(&cmds[i])
		}
		if status == 0 && err == nil {
			status, err = n.execute(&cmds[i])
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		cmds[i].Status = status
	}
	return first
}

func (n *fakeNamespace) execute(cmd *iopath.Command) (int32, error) {
	if cmd.NSID != n.nsid {
		return 0x400b, nil
	}
	lba := uint64(cmd.CDW11)<<32 | uint64(cmd.CDW10)
	switch cmd.Opcode {
	case opFlush:
	case opRead, opWrite:
		blocks := uint64(cmd.CDW12&0xffff) + 1
		if len(cmd.P) > cfs.BlockSize<<n.mdts || blocks*uint64(n.blockBytes) != uint64(len(cmd.P)) {
			return 0, syscall.EINVAL
		}
		if (lba+blocks)*uint64(n.blockBytes) > uint64(len(n.data)) {
			return 0x4080, nil
		}
		at := n.data[lba*uint64(n.blockBytes):][:len(cmd.P)]
		if cmd.Opcode == opRead {
			copy(cmd.P, at)
		} else {
			copy(at, cmd.P)
		}
	case opDataset:
		if cmd.CDW10 != 0 || cmd.CDW11 != 1<<2 || len(cmd.P) != 16 {
			return 0x4002, nil
		}
		off := binary.LittleEndian.Uint64(cmd.P[8:]) * uint64(n.blockBytes)
		size := uint64(binary.LittleEndian.Uint32(cmd.P[4:])) * uint64(n.blockBytes)
		if off+size > uint64(len(n.data)) {
			return 0x4080, nil
		}
		clear(n.data[off:][:size])
	default:
		return 0x4001, nil
	}
	return 0, nil
}

// TestPassthrough is the conformance suite on a namespace in memory, of both block sizes.
func TestPassthrough(t *testing.T) {
	for _, blockBytes := range []int{512, 4096} {
		n := newFakeNamespace(blockBytes)
		s := &deviceSuite{r: newDeviceRig(t, false), path: "fake", kind: KindPassthrough, open: n.open}
		info := s.run(t)
		want := Info{
			Path: "fake", SizeBytes: suiteBytes, Kind: KindPassthrough, Direct: true, LogicalBlockBytes: blockBytes,
			MaxTransferBytes: 256 << 10, DiscardBytes: blockBytes,
			Identity: Identity{0x52, 0x54, 0, 1, 2, 3, 4, 5}, Model: "model of a device", Serial: "serial",
		}
		if info != want {
			t.Errorf("info %+v\nwant %+v", info, want)
		}
	}
}

func fakeDevice(t *testing.T, n *fakeNamespace) Device {
	t.Helper()
	dev, err := n.open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// TestPassthroughCommands checks what the device is told.
func TestPassthroughCommands(t *testing.T) {
	n := newFakeNamespace(512)
	dev := fakeDevice(t, n)
	const mib = 1 << 20
	p := make([]byte, mib+4096)
	n.batches = [][]iopath.Command{}
	for _, err := range []error{
		dev.Write([]iopath.WriteOp{{P: p, Off: mib, Sync: true}, {P: p[:4096], Off: 8192}}),
		dev.Read(p[:8192], 4096),
		dev.Flush(),
		dev.Discard(mib, 5*mib/2),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(n.batches) != 4 {
		t.Fatalf("%d submissions for four calls", len(n.batches))
	}
	// A transfer of 257 blocks in pieces of at most 64: five, of 52, 52, 51, 51, 51.
	next := uint32(mib / 512)
	for i, blocks := range []uint32{52, 52, 51, 51, 51} {
		cmd := n.batches[0][i]
		if cmd.Opcode != 1 || cmd.NSID != 3 || cmd.CDW10 != next || cmd.CDW11 != 0 || cmd.CDW12 != blocks*8-1|1<<30 || len(cmd.P) != int(blocks)*4096 {
			t.Errorf("piece %d: %+v, want %d blocks at %d", i, cmd, blocks, next)
		}
		next += blocks * 8
	}
	if cmd := n.batches[0][5]; len(n.batches[0]) != 6 || cmd.Opcode != 1 || cmd.CDW10 != 16 || cmd.CDW12 != 7 {
		t.Errorf("a write that is not durable: %+v", cmd)
	}
	if cmd := n.batches[1][0]; len(n.batches[1]) != 1 || cmd.Opcode != 2 || cmd.CDW10 != 8 || cmd.CDW12 != 15 {
		t.Errorf("a read: %+v", cmd)
	}
	if cmd := n.batches[2][0]; len(n.batches[2]) != 1 || cmd.Opcode != 0 || cmd.NSID != 3 {
		t.Errorf("a flush: %+v", cmd)
	}
	if cmds := n.batches[3]; len(cmds) != 3 {
		t.Errorf("a discard of 2.5 MiB, of which one takes 1 MiB: %d commands", len(cmds))
	}
}

// TestPassthroughNoDataset has a device without the command that discards.
func TestPassthroughNoDataset(t *testing.T) {
	n := newFakeNamespace(512)
	clear(n.controller[520:522])
	dev := fakeDevice(t, n)
	if err := dev.Discard(0, 4096); cfs.KindOf(err) != cfs.Unsupported || dev.Info().DiscardBytes != 0 || !strings.Contains(err.Error(), "fake") {
		t.Errorf("%v, %+v", err, dev.Info())
	}
}

// TestPassthroughHighBlocks has a block whose number needs more than 32 bits.
func TestPassthroughHighBlocks(t *testing.T) {
	n := newFakeNamespace(512)
	binary.LittleEndian.PutUint64(n.namespace, 1<<40)
	dev := fakeDevice(t, n)
	n.onCommand = func(cmd *iopath.Command) (int32, error) {
		if cmd.CDW11 != 2 || cmd.CDW10 != 8 {
			t.Errorf("%+v", cmd)
		}
		return 0x4281, nil
	}
	err := dev.Write([]iopath.WriteOp{{P: make([]byte, 4096), Off: (2<<32 + 8) * 512}})
	if err == nil || !strings.Contains(err.Error(), "4398046515200") {
		t.Errorf("%v", err)
	}
}

// TestPassthroughStatuses checks what a device's refusals become.
func TestPassthroughStatuses(t *testing.T) {
	n := newFakeNamespace(4096)
	dev := fakeDevice(t, n)
	var status int32
	n.onCommand = func(*iopath.Command) (int32, error) { return status, nil }
	p := make([]byte, 8192)
	for _, c := range []struct {
		status int32
		kind   cfs.Kind // of the device's error
		cause  cfs.Kind // within it
		text   string
	}{
		{0x4281, cfs.IO, cfs.IO, "unrecovered read error"},
		{0x0281, cfs.IO, cfs.IO, "unrecovered read error"},
		{0x4280, cfs.IO, cfs.IO, "write fault"},
		{0x4081, cfs.NoSpace, cfs.NoSpace, "capacity exceeded"},
		{0x4080, cfs.IO, cfs.Invalid, "LBA out of range"},
		{0x4020, cfs.IO, cfs.ReadOnly, "write protected"},
		{0x4282, cfs.IO, cfs.Corrupt, "guard"},
		{0x4006, cfs.IO, cfs.IO, "internal error"}, // it might do again, but says no
		{0x47ff, cfs.IO, cfs.IO, "0x7ff"},
		{0x4001, cfs.IO, cfs.Unsupported, "invalid command opcode"},
	} {
		status = c.status
		n.batches = [][]iopath.Command{}
		for what, err := range map[string]error{
			"write": dev.Write([]iopath.WriteOp{{P: p, Off: 20480}}),
			"read":  dev.Read(p, 20480),
		} {
			if cfs.KindOf(err) != c.kind || !errors.Is(err, c.cause) {
				t.Errorf("%#x: kind %v: %v", c.status, cfs.KindOf(err), err)
			}
			for _, text := range []string{"fake", what, c.text, "20480"} {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%#x: no %q in %v", c.status, text, err)
				}
			}
		}
		if len(n.batches) != 2 {
			t.Errorf("%#x: %d submissions for two calls", c.status, len(n.batches))
		}
	}
	status = 0x4001
	if err := dev.Discard(4096, 8192); cfs.KindOf(err) != cfs.Unsupported || !strings.Contains(err.Error(), "8192 bytes at 4096") {
		t.Errorf("discard: %v", err)
	}
	if err := dev.Flush(); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), "flush") {
		t.Errorf("flush: %v", err)
	}
}

// TestPassthroughRetries checks that what may succeed is sent again, alone, and
// not without end.
func TestPassthroughRetries(t *testing.T) {
	n := newFakeNamespace(4096)
	dev := fakeDevice(t, n)
	p := make([]byte, 3*4096)
	copy(p, noise(1, len(p)))
	ops := []iopath.WriteOp{{P: p[:4096], Off: 0}, {P: p[4096:8192], Off: 8192}, {P: p[8192:], Off: 4096}}
	for name, answer := range map[string]func() (int32, error){
		"internal error": func() (int32, error) { return 0x0006, nil },
		"path error":     func() (int32, error) { return 0x0370, nil },
		"reset":          func() (int32, error) { return 0, cfs.E("NVMe command", cfs.IO, syscall.EINTR) },
	} {
		n.batches = [][]iopath.Command{}
		left := 2
		n.onCommand = func(cmd *iopath.Command) (int32, error) {
			if cmd.CDW10 == 2 && left > 0 {
				left--
				return answer()
			}
			return 0, nil
		}
		if err := dev.Write(ops); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(n.batches) != 3 || len(n.batches[1]) != 1 || len(n.batches[2]) != 1 || n.batches[2][0].CDW10 != 2 {
			t.Errorf("%s: submissions %+v", name, n.batches)
		}
	}
	n.onCommand = nil
	got := make([]byte, len(p))
	if err := dev.ReadMany([]iopath.ReadOp{{P: got[:4096], Off: 0}, {P: got[4096:8192], Off: 8192}, {P: got[8192:], Off: 4096}}); err != nil || !bytes.Equal(got, p) {
		t.Errorf("other bytes, or %v", err)
	}
	for name, answer := range map[string]func() (int32, error){
		"status": func() (int32, error) { return 0x0082, nil },
		"errno":  func() (int32, error) { return 0, cfs.E("NVMe command", cfs.IO, syscall.EINTR) },
	} {
		n.batches, n.paused = [][]iopath.Command{}, nil
		n.onCommand = func(*iopath.Command) (int32, error) { return answer() }
		if err := dev.Write(ops[1:]); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), "at 8192") {
			t.Errorf("%s without end: %v", name, err)
		}
		if len(n.batches) != maxTries {
			t.Errorf("%s: %d tries, want %d", name, len(n.batches), maxTries)
		}
		const ms = time.Millisecond
		if want := []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, 1000 * ms}; !slices.Equal(n.paused, want) {
			t.Errorf("%s: pauses %v, want %v", name, n.paused, want)
		}
	}
	// Of two failures the final one counts, and the other is not tried again.
	n.batches = [][]iopath.Command{}
	n.onCommand = func(cmd *iopath.Command) (int32, error) {
		if cmd.CDW10 == 0 {
			return 0x0082, nil
		}
		return 0x4280, nil
	}
	if err := dev.Write(ops); err == nil || !strings.Contains(err.Error(), "write fault") || len(n.batches) != 1 {
		t.Errorf("%v after %d submissions", err, len(n.batches))
	}
}

// TestPassthroughGone has the kernel refuse everything, as for a device that was unplugged.
func TestPassthroughGone(t *testing.T) {
	n := newFakeNamespace(4096)
	dev := fakeDevice(t, n)
	n.onCommand = func(*iopath.Command) (int32, error) { return 0, cfs.E("NVMe command", cfs.IO, syscall.ENODEV) }
	p := make([]byte, 4096)
	for _, err := range []error{dev.Read(p, 4096), dev.Write([]iopath.WriteOp{{P: p, Off: 4096}}), dev.Flush(), dev.Discard(4096, 4096)} {
		if cfs.KindOf(err) != cfs.IO || !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "fake") {
			t.Errorf("%v", err)
		}
	}
	n.noAdmin = syscall.ENODEV
	if _, err := dev.(HealthReader).Health(); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), "fake") {
		t.Errorf("health: %v", err)
	}
}

// TestRetryDelay checks that a device's wish for a pause is followed, within a bound.
func TestRetryDelay(t *testing.T) {
	n := newFakeNamespace(4096)
	for i, delay := range []uint16{1, 20, 65535} { // of 100 ms
		binary.LittleEndian.PutUint16(n.controller[128+2*i:], delay)
	}
	dev := fakeDevice(t, n)
	for which, want := range []time.Duration{retryWait, 100 * time.Millisecond, 2 * time.Second, maxDeviceWait} {
		n.paused = nil
		n.onCommand = func(*iopath.Command) (int32, error) {
			n.onCommand = nil
			return 0x0082 | int32(which)<<11, nil
		}
		if err := dev.Flush(); err != nil || !slices.Equal(n.paused, []time.Duration{want}) {
			t.Errorf("delay %d: pauses %v, want %v; %v", which, n.paused, want, err)
		}
	}
}

// TestPassthroughRefusals opens what cannot be used.
func TestPassthroughRefusals(t *testing.T) {
	for what, c := range map[string]struct {
		change func(n *fakeNamespace)
		kind   cfs.Kind
		text   string
	}{
		"large blocks":     {func(n *fakeNamespace) { n.namespace[128+4+2] = 13 }, cfs.Invalid, "8192"},
		"metadata":         {func(n *fakeNamespace) { n.namespace[128+4] = 8 }, cfs.Invalid, "8 bytes of metadata"},
		"not active":       {func(n *fakeNamespace) { clear(n.namespace[:8]) }, cfs.Invalid, "not active"},
		"zoned":            {func(n *fakeNamespace) { n.list = []byte{4, 1, 0, 0, 2, 0, 0, 0, 0} }, cfs.Invalid, "command set is 2"},
		"write protected":  {func(n *fakeNamespace) { n.namespace[99] = 1 }, cfs.ReadOnly, "write protected"},
		"nonsense":         {func(n *fakeNamespace) { n.namespace[128+4+2] = 200 }, cfs.Corrupt, "2^200"},
		"bad list":         {func(n *fakeNamespace) { n.list = []byte{2, 15, 0, 0} }, cfs.Corrupt, "type 2 and 15 bytes"},
		"no permission":    {func(n *fakeNamespace) { n.noAdmin = syscall.EACCES }, cfs.Access, "identify"},
		"no commands":      {func(n *fakeNamespace) { n.onCommand = refuse(cfs.E("", cfs.Unsupported, nil)) }, cfs.IO, "read"},
		"read error":       {func(n *fakeNamespace) { n.onCommand = answer(0x4281) }, cfs.IO, "unrecovered"},
		"another's number": {func(n *fakeNamespace) { n.onCommand = answer(0x400b) }, cfs.IO, "invalid namespace"},
	} {
		n := newFakeNamespace(512)
		c.change(n)
		_, err := n.open(0)
		if cfs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func refuse(err error) func(*iopath.Command) (int32, error) {
	return func(*iopath.Command) (int32, error) { return 0, err }
}

func answer(status int32) func(*iopath.Command) (int32, error) {
	return func(*iopath.Command) (int32, error) { return status, nil }
}

// TestPassthroughIdentity has the namespace's name in each of the places where it may be.
func TestPassthroughIdentity(t *testing.T) {
	nguid := Identity{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	eui := Identity{0x52, 0x54, 0, 1, 2, 3, 4, 5}
	listed := append(append([]byte{1, 8, 0, 0}, eui[:8]...), append([]byte{9, 3, 0, 0, 1, 2, 3, 2, 16, 0, 0}, nguid[:]...)...)
	for what, c := range map[string]struct {
		change func(n *fakeNamespace)
		want   Identity
		text   string
	}{
		"EUI64":       {func(*fakeNamespace) {}, eui, "eui.5254000102030405"},
		"NGUID":       {func(n *fakeNamespace) { copy(n.namespace[104:], nguid[:]) }, nguid, "eui.0102030405060708090a0b0c0d0e0f10"},
		"none":        {func(n *fakeNamespace) { clear(n.namespace[104:128]) }, Identity{}, "none"},
		"listed":      {func(n *fakeNamespace) { clear(n.namespace[104:128]); n.list = listed }, nguid, "eui.0102030405060708090a0b0c0d0e0f10"},
		"EUI64 alone": {func(n *fakeNamespace) { clear(n.namespace[104:128]); n.list = listed[:12] }, eui, "eui.5254000102030405"},
	} {
		n := newFakeNamespace(512)
		c.change(n)
		if got := fakeDevice(t, n).Info().Identity; got != c.want || got.String() != c.text {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// TestPassthroughLimits checks which of several limits counts.
func TestPassthroughLimits(t *testing.T) {
	for _, c := range []struct {
		ctrl, blk, blockBytes int
		want                  int
	}{
		{0, 0, 512, 32 << 20},
		{0, 0, 4096, 256 << 20},
		{1 << 20, 0, 4096, 1 << 20},
		{1 << 20, 127 * 4096, 512, 127 * 4096},
		{64 << 10, 127 * 4096, 512, 64 << 10},
		{0, 127*4096 + 512, 512, 127 * 4096},
	} {
		d := &passthrough{ctrl: controller{maxTransfer: c.ctrl}, ns: namespace{blockBytes: c.blockBytes}}
		d.shift = d.ns.shift()
		if d.describe(blockInfo{maxTransferBytes: c.blk}); d.info.MaxTransferBytes != c.want {
			t.Errorf("%+v: %d", c, d.info.MaxTransferBytes)
		}
	}
	d := &passthrough{ctrl: controller{deallocates: true}, ns: namespace{blockBytes: 512}, shift: 9}
	if d.describe(blockInfo{discardMaxBytes: math.MaxInt64}); d.discard != 0xffffffff*512/4096*4096 {
		t.Errorf("discard of %d bytes in one range", d.discard)
	}
}

func TestDecodeHealth(t *testing.T) {
	p := make([]byte, healthBytes)
	le := binary.LittleEndian
	p[0] = 0x05
	le.PutUint16(p[1:], 310)
	p[3], p[4], p[5] = 97, 10, 101
	for i := range 10 {
		le.PutUint64(p[32+16*i:], uint64(i+1))
	}
	le.PutUint32(p[192:], 11)
	le.PutUint32(p[196:], 12)
	want := Health{
		Critical: 5, TemperatureCelsius: 37, SparePercent: 97, SpareThresholdPercent: 10, UsedPercent: 101,
		BytesRead: 512_000, BytesWritten: 2 * 512_000, Reads: 3, Writes: 4, BusyMinutes: 5, PowerCycles: 6, PowerOnHours: 7,
		UnsafeShutdowns: 8, MediaErrors: 9, ErrorLogEntries: 10, WarningTempMinutes: 11, CriticalTempMinutes: 12,
	}
	if h, err := decodeHealth(p); err != nil || h != want {
		t.Errorf("%+v, %v\nwant %+v", h, err, want)
	}
	le.PutUint64(p[32:], math.MaxUint64/512_000+1)
	le.PutUint64(p[64+8:], 1)
	le.PutUint16(p[1:], 0)
	if h, err := decodeHealth(p); err != nil || h.BytesRead != math.MaxUint64 || h.Reads != math.MaxUint64 || h.TemperatureCelsius != math.MinInt {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := decodeHealth(p[:511]); cfs.KindOf(err) != cfs.Corrupt {
		t.Errorf("a short page: %v", err)
	}
}

// FuzzIdentify feeds the answers of a device to everything that reads them: any
// give an error, or a device whose commands stay within its bounds.
func FuzzIdentify(f *testing.F) {
	n := newFakeNamespace(512)
	f.Add(n.namespace, n.controller, []byte{})
	f.Add(n.namespace[:200], n.controller, []byte{1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 16, 0, 0})
	f.Add([]byte{}, []byte{}, []byte{4, 1, 0, 0, 1})
	f.Fuzz(func(t *testing.T, namespace, controller, list []byte) {
		n := &fakeNamespace{nsid: 3, namespace: pad(namespace), controller: pad(controller), list: list, holder: true}
		n.onCommand = func(cmd *iopath.Command) (int32, error) {
			if len(cmd.P) == 0 || len(cmd.P) > cfs.BlockSize {
				t.Errorf("%+v", cmd)
			}
			return 0x4281, nil
		}
		d := &passthrough{info: Info{Path: "fake"}, adm: admin{nsid: n.nsid, send: n.admin}, eng: n, cmdr: n}
		if err := d.start(blockInfo{}); err == nil {
			t.Fatal("a device that reads nothing was opened")
		}
		i := d.info
		if i.Kind != KindPassthrough {
			return // it did not come so far
		}
		if i.SizeBytes < 0 || i.SizeBytes%cfs.BlockSize != 0 || i.MaxTransferBytes < cfs.BlockSize || i.MaxTransferBytes%cfs.BlockSize != 0 ||
			i.LogicalBlockBytes < 512 || i.LogicalBlockBytes > cfs.BlockSize {
			t.Errorf("info %+v", i)
		}
		// Raw and short answers, which a kernel does not hand on.
		_, _ = decodeNamespace(namespace)
		_, _ = decodeController(controller)
	})
}

// pad makes an answer of what a device sent, as the kernel hands it on.
func pad(p []byte) []byte {
	out := make([]byte, identifyBytes)
	copy(out, p)
	return out
}

// FuzzHealth reads any health log.
func FuzzHealth(f *testing.F) {
	f.Add(make([]byte, healthBytes))
	f.Add(noise(1, healthBytes))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, err := decodeHealth(p); err == nil != (len(p) >= healthBytes) {
			t.Error(err)
		}
	})
}

// FuzzDescriptors reads any descriptor list.
func FuzzDescriptors(f *testing.F) {
	f.Add([]byte{1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 4, 1, 0, 0, 0})
	f.Add([]byte{3, 255, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		var ns namespace
		if err := decodeDescriptors(p, &ns); err != nil && cfs.KindOf(err) != cfs.Corrupt {
			t.Error(err)
		}
	})
}
