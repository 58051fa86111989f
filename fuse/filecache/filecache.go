package filecache

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/internal/durable"
)

const (
	// DefaultSizeBytes is the bound of a cache for which none was given.
	DefaultSizeBytes = 10 << 30
	// maxFiles bounds the files of a cache.
	maxFiles = 1 << 17
	// blockBytes is what the size of a file is rounded up to.
	blockBytes = 4 << 10
	// noSpacePause is how long nothing is filled after the local file system was full.
	noSpacePause = time.Minute
	// minUseAge is how old the noted time of the last use must be to be noted anew.
	minUseAge = time.Minute

	filesDir    = "files"
	lockFile    = "lock"
	clusterFile = "cluster"
	partSuffix  = ".part"
	// format begins the file that says whose cache a directory is.
	format = "claudefs cache 1 of "
)

// Config says where a cache is and how large it may get.
type Config struct {
	// Dir is made if it is missing. One that is neither empty nor a cache of this cluster is refused.
	Dir string
	// SizeBytes bounds the files, complete or not; 0 for DefaultSizeBytes.
	SizeBytes int64
	// MaxFiles bounds their number; 0 for the built-in bound.
	MaxFiles int
	// ClusterID is whose files these are.
	ClusterID string
	// Logger may be nil, for slog's default.
	Logger *slog.Logger
}

// Cache is whole files in a directory. Its methods may be called from any goroutine.
type Cache struct {
	dir   string // of the files
	lock  *os.File
	log   *slog.Logger
	limit int64
	max   int
	stats stats

	mu      sync.Mutex
	closed  bool
	files   map[cfs.Ino]*entry // complete, one version of each
	used    *list.List         // of *entry: the last used first
	filling map[cfs.Ino]bool
	bytes   int64 // of files that are complete, being filled, or without a name and in use
	paused  time.Time
}

// entry is a file of the cache, with or without a name.
type entry struct {
	key   Key
	bytes int64
	named bool          // in files and used
	elem  *list.Element // while named
	pins  int           // Files that are open
	noted time.Time     // the time of use that the file has
}

// Open opens the cache in cfg.Dir, which stays locked until Close. cfs.WrongCluster for a directory of
// another cluster, cfs.Busy for one that is in use, cfs.Exists for one that is no cache.
func Open(cfg Config) (*Cache, error) {
	op := "cache directory " + cfg.Dir
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.SizeBytes == 0 {
		cfg.SizeBytes = DefaultSizeBytes
	}
	if cfg.MaxFiles == 0 {
		cfg.MaxFiles = maxFiles
	}
	lock, err := claim(op, cfg.Dir, cfg.ClusterID)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		dir: filepath.Join(cfg.Dir, filesDir), lock: lock, log: cfg.Logger, limit: cfg.SizeBytes, max: cfg.MaxFiles,
		files: map[cfs.Ino]*entry{}, used: list.New(), filling: map[cfs.Ino]bool{},
	}
	if err := c.load(); err != nil {
		return nil, errors.Join(cfs.E(op, cfs.KindOf(err), err), lock.Close())
	}
	return c, nil
}

// claim makes dir a cache of the cluster, unless it is one, and locks it.
func claim(op, dir, cluster string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	if err := checkOwner(op, dir, cluster); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cfs.E(op, cfs.KindOf(err), err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(cfs.Errorf(op, cfs.Busy, "another mount uses it"), lock.Close())
	}
	if err == nil {
		err = checkOwner(op, dir, cluster) // again, now that nobody else can make it one
	}
	if err == nil {
		err = durable.Replace(filepath.Join(dir, clusterFile), []byte(format+cluster+"\n"))
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, filesDir), 0o700)
	}
	if err != nil {
		return nil, errors.Join(cfs.E(op, cfs.KindOf(err), err), lock.Close())
	}
	return lock, nil
}

// checkOwner refuses a directory that is neither empty nor a cache of the cluster.
func checkOwner(op, dir, cluster string) error {
	owner, err := os.ReadFile(filepath.Join(dir, clusterFile))
	if err == nil {
		got, ok := strings.CutPrefix(string(owner), format)
		if got = strings.TrimSuffix(got, "\n"); !ok {
			return cfs.Errorf(op, cfs.Exists, "its %q is not of this version: empty the directory or give another", clusterFile)
		}
		if got != cluster {
			return cfs.Errorf(op, cfs.WrongCluster, "it belongs to cluster %q, not %q: empty the directory or give another", got, cluster)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return cfs.E(op, cfs.KindOf(err), err)
	}
	for _, n := range names {
		if n.Name() != lockFile && !strings.HasPrefix(n.Name(), durable.TempPrefix) { // what a crash here leaves
			return cfs.Errorf(op, cfs.Exists, "it is no cache and not empty (%q): give another", n.Name())
		}
	}
	return nil
}

// load takes stock of the directory and removes what is not complete.
func (c *Cache) load() error {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var found []*entry
	for _, n := range names {
		path := filepath.Join(c.dir, n.Name())
		info, err := n.Info()
		if err != nil {
			return err
		}
		key, ok := parseName(n.Name())
		if !ok || !info.Mode().IsRegular() || uint64(info.Size()) != key.SizeBytes {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			continue
		}
		found = append(found, &entry{key: key, bytes: roundUp(key.SizeBytes), noted: info.ModTime()})
	}
	slices.SortFunc(found, func(a, b *entry) int { return a.noted.Compare(b.noted) })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range found {
		c.bytes += e.bytes
		c.addLocked(e)
	}
	c.makeRoomLocked(0)
	return nil
}

// Close ends the use of the directory. Files that are open are used until they are closed.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.lock.Close()
}

// Has reports that the content k is complete here.
func (c *Cache) Has(k Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.files[k.Ino]
	return e != nil && e.key == k
}

// Drop forgets whatever is here of an inode.
func (c *Cache) Drop(i cfs.Ino) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.files[i]; e != nil {
		c.unnameLocked(e)
	}
}

// removeLocked removes a name.
func (c *Cache) removeLocked(k Key) error {
	if err := os.Remove(c.path(k)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Probe is a descriptor of a file on the file system of the cache, to see what can be done with such.
func (c *Cache) Probe() int { return int(c.lock.Fd()) }

func (c *Cache) path(k Key) string { return filepath.Join(c.dir, k.name()) }

// roundUp is the room that a file takes.
func roundUp(size uint64) int64 { return int64((size + blockBytes - 1) &^ (blockBytes - 1)) }

// addLocked gives e, whose bytes are counted, its place; another version of the inode loses it.
func (c *Cache) addLocked(e *entry) {
	if old := c.files[e.key.Ino]; old != nil {
		c.unnameLocked(old)
	}
	e.named = true
	c.files[e.key.Ino] = e
	e.elem = c.used.PushFront(e)
}

// unnameLocked takes e's name away; its room is given back once nobody uses it.
func (c *Cache) unnameLocked(e *entry) {
	if err := c.removeLocked(e.key); err != nil {
		c.log.Warn("a file of the cache is not removed", "err", err)
	}
	c.forgetLocked(e)
}

func (c *Cache) forgetLocked(e *entry) {
	delete(c.files, e.key.Ino)
	c.used.Remove(e.elem)
	e.named, e.elem = false, nil
	if e.pins == 0 {
		c.bytes -= e.bytes
	}
}

// makeRoomLocked evicts what was used longest ago until want more bytes fit; false if they do not. What is in use stays.
func (c *Cache) makeRoomLocked(want int64) bool {
	fits := func() bool { return c.bytes+want <= c.limit && len(c.files)+len(c.filling) < c.max }
	for elem := c.used.Back(); elem != nil && !fits(); {
		e := elem.Value.(*entry)
		elem = elem.Prev()
		if e.pins == 0 {
			c.unnameLocked(e)
			c.stats.evicted.Add(1)
		}
	}
	return fits()
}

// errString says what a bound is.
func (c *Cache) errString() string {
	return fmt.Sprintf("%d bytes and %d files are the bound", c.limit, c.max)
}
