package rawdisk

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
)

func sample(t testing.TB) []byte {
	t.Helper()
	out, err := os.ReadFile("testdata/randread.json")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParse(t *testing.T) {
	res, err := Parse(append([]byte("note: something before the document\n"), sample(t)...), "randread")
	if err != nil {
		t.Fatal(err)
	}
	if res.Version != "fio-3.33" || res.Ops != 17186 || math.Round(res.OpsPerSecond) != 34303 || res.BytesPerSecond != 140506698 {
		t.Errorf("got %+v", res)
	}
	if res.P50 != 585728 || res.P99 != 7176192 || res.P999 != 30539776 {
		t.Errorf("latencies %+v", res)
	}
	if res.CPU <= 0 || res.CPU > time.Second {
		t.Errorf("%s of CPU time in half a second of one thread", res.CPU)
	}
}

func TestParseRefuses(t *testing.T) {
	text := string(sample(t))
	for _, c := range []struct {
		what, out, rw string
		kind          cfs.Kind
	}{
		{"nothing", "", "read", cfs.Corrupt},
		{"no document", "fio: out of memory", "read", cfs.Corrupt},
		{"no job", `{"jobs": []}`, "read", cfs.Corrupt},
		{"the side that did nothing", text, "randwrite", cfs.Corrupt},
		{"a failed job", strings.Replace(text, `"error" : 0`, `"error" : 5`, 1), "randread", cfs.IO},
		{"time backwards", strings.Replace(text, `"usr_cpu" : `, `"usr_cpu" : -1e9`, 1), "randread", cfs.Corrupt},
		{"cut short", text[:len(text)/2], "randread", cfs.Corrupt},
	} {
		if res, err := Parse([]byte(c.out), c.rw); cfs.KindOf(err) != c.kind {
			t.Errorf("%s: %+v, %v", c.what, res, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample(f), "randread")
	f.Add([]byte(`{"jobs":[{"usr_cpu":1e308,"sys_cpu":1e308,"job_runtime":1e308,"read":{"total_ios":1,"iops":1,"bw_bytes":1}}]}`), "read")
	f.Add([]byte(`{"jobs":[{"write":{"total_ios":1,"iops":-1,"bw_bytes":1}}]}`), "write")
	f.Fuzz(func(t *testing.T, out []byte, rw string) {
		res, err := Parse(out, rw)
		if err != nil {
			return
		}
		if res.Ops <= 0 || !(res.OpsPerSecond > 0) || !(res.BytesPerSecond > 0) || min(res.CPU, res.P50, res.P99, res.P999) < 0 {
			t.Errorf("took %q for %+v", out, res)
		}
	})
}

func TestRunFio(t *testing.T) {
	fio, err := FindFio()
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "with:colon")
	if err := Prewrite(context.Background(), path, 8<<20); err != nil {
		t.Fatal(err)
	}
	for _, j := range []Job{
		{RW: "write"},
		{RW: "read"},
		{RW: "randread", Runtime: 50 * time.Millisecond, Seed: 3},
		{RW: "randwrite", Runtime: 50 * time.Millisecond, Sync: true, OffsetBytes: 1 << 20},
	} {
		j.Path, j.SizeBytes, j.BlockBytes, j.Depth = path, 4<<20, 64<<10, 4
		res, err := RunFio(context.Background(), fio, j)
		if err != nil {
			if cfs.KindOf(err) == cfs.Corrupt {
				t.Fatal(err)
			}
			t.Skip("fio cannot run its job here: ", err)
		}
		if j.Runtime == 0 && res.Ops != 64 {
			t.Errorf("%s: %d operations on a range of 64 blocks", j.RW, res.Ops)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 8<<20 {
		t.Errorf("the file has %d bytes afterwards, %v", st.Size(), err)
	}
	bad := Job{Path: filepath.Join(path, "nowhere"), RW: "read", SizeBytes: 1 << 20, BlockBytes: 4096, Depth: 1}
	if _, err := RunFio(context.Background(), fio, bad); cfs.KindOf(err) != cfs.IO || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a path that cannot be: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := RunFio(ctx, fio, bad); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestArgs(t *testing.T) {
	j := Job{Path: "/dev/x", RW: "read", SizeBytes: 1 << 20, BlockBytes: 4096, Depth: 1}
	for _, flag := range []string{"--direct=1", "--offset=0", "--size=1048576"} {
		if !slices.Contains(j.Args(), flag) {
			t.Errorf("%v lacks %s", j.Args(), flag)
		}
	}
	j.Buffered = true
	for _, flag := range []string{"--direct=1", "--sync=dsync", "--time_based"} {
		if slices.Contains(j.Args(), flag) {
			t.Errorf("%v has %s", j.Args(), flag)
		}
	}
}

func TestPrewriteAllocates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	const n = 9 << 20
	if err := Prewrite(context.Background(), path, n); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20 || st.Blocks*512 < n || st.Blocks*512 > 2*n {
		t.Errorf("size %d, %d allocated after prewriting %d", st.Size, st.Blocks*512, n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Prewrite(ctx, path, n); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSeq(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	chunk := []byte("0123456789")
	if rate, err := SeqWrite(t.Context(), path, 25, chunk); err != nil || rate <= 0 {
		t.Fatalf("%g, %v", rate, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "0123456789012345678901234" {
		t.Errorf("%q, %v", got, err)
	}
	if rate, err := SeqRead(t.Context(), path); err != nil || rate <= 0 {
		t.Errorf("%g, %v", rate, err)
	}
	if _, err := SeqWrite(t.Context(), path, 25, chunk); cfs.KindOf(err) != cfs.Exists {
		t.Errorf("over a file: %v", err)
	}
	if _, err := SeqRead(t.Context(), path+"x"); cfs.KindOf(err) != cfs.NotFound {
		t.Errorf("no file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SeqRead(ctx, path); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("given up: %v", err)
	}
	if _, err := SeqWrite(ctx, path+"y", 25, chunk); cfs.KindOf(err) != cfs.Canceled {
		t.Errorf("given up: %v", err)
	}
}
