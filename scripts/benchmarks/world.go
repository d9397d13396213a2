package benchmarks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// firstInWorld is the id of a world's first item. All ids have eight digits, and a folder holds 1,000 items.
const firstInWorld = 10_000_000

// size is how much there is in a world. Its items are, in the order of their ids: those that move; those with a pending
// entry; the rest, on gold, some of which are posted.
type size struct{ items, pending, files, moving int }

// world is a Tierflow with a past. It has items that nobody posts, entries that another relocator has read and not
// settled, and files beside those that move.
type world struct {
	*tierflow
	posts *posts
	size  size
	hot   []item.ID // the same number for every size, spread over the table
	at    string    // the level of the files that move

	digests []string // of the files that move

	commands map[string]calls // of Redis, during the measurements
}

// calls has the number of calls of a command, and the microseconds that they took together.
type calls struct{ calls, us float64 }

// away is the relocator that has read the pending entries. No other relocator claims them during a measurement.
const (
	away    = "away"
	minIdle = 30 * time.Minute
)

func newWorld(ctx context.Context, b *Bench, name string, s size) (*world, error) {
	dir := filepath.Join(b.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	files := make([]stack.Sample, s.moving)
	for i := range files {
		files[i] = stack.Sample{ID: item.ID(firstInWorld + i), Level: "bronze", Size: 16 << 10, Filename: filename(firstInWorld + i)}
	}
	t, err := prepareTierflow(ctx, b, stack.Options{Dir: dir, Settings: map[string]string{
		"TIERFLOW_MIN_IDLE":    minIdle.String(),
		"TIERFLOW_MAX_BACKLOG": "100000000", // else the api could refuse events in a large world
	}}, files)
	if err != nil {
		return nil, err
	}
	w := &world{tierflow: t, size: s, at: "bronze", commands: map[string]calls{}, posts: &posts{Bench: b, stack: t.stack, redis: t.redis, mysql: t.mysql}}
	rest := s.items - s.moving - s.pending
	for i := range items {
		w.hot = append(w.hot, item.ID(firstInWorld+s.moving+s.pending+i*rest/items))
	}
	bronze, err := w.level(ctx, w.at)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		digest, err := stack.Digest(filepath.Join(bronze.Path, f.Filename))
		if err != nil {
			return nil, err
		}
		w.digests = append(w.digests, digest)
	}
	return w, w.fill(ctx)
}

// filename returns the path of an item on its tier. A folder holds a thousand items.
func filename(id int) string { return fmt.Sprintf("videos/%05d/%08d.mp4", id/1000, id) }

// fill makes everything except the files that move, which exist already.
func (w *world) fill(ctx context.Context) error {
	begin := time.Now()
	var wg sync.WaitGroup
	var errs [3]error
	for i, fill := range []struct {
		what string
		do   func(context.Context) error
	}{{"rows", w.fillTable}, {"pending entries", w.fillStream}, {"files", w.fillTier}} {
		wg.Go(func() {
			if err := fill.do(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", fill.what, err)
			}
			w.Logf("%s are there after %.0f s", fill.what, time.Since(begin).Seconds())
		})
	}
	wg.Wait()
	syscall.Sync() // else the kernel would write it during a measurement
	return errors.Join(errs[:]...)
}

// fillTable inserts rows in the order of their keys, without checks of keys. MySQL's manual recommends both for loading a
// table.
func (w *world) fillTable(ctx context.Context) error {
	conn, err := w.stack.DB().Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A server of this size has more memory and a larger log than the defaults. MySQL and MariaDB name the log's size
	// differently.
	if _, err := conn.ExecContext(ctx, "SET GLOBAL innodb_buffer_pool_size = 1 << 30"); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SET GLOBAL innodb_log_file_size = 1 << 29"); err != nil {
		if _, err := conn.ExecContext(ctx, "SET GLOBAL innodb_redo_log_capacity = 1 << 29"); err != nil {
			return err
		}
	}
	numbers := make([]string, 10_000)
	for i := range numbers {
		numbers[i] = fmt.Sprintf("(%d)", i)
	}
	for _, statement := range []string{
		"SET unique_checks = 0", "SET foreign_key_checks = 0",
		"CREATE TEMPORARY TABLE numbers (n INT PRIMARY KEY)", "INSERT INTO numbers VALUES " + strings.Join(numbers, ","),
	} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	end := firstInWorld + w.size.items
	for from := firstInWorld + w.size.moving; from < end; from += len(numbers) {
		_, err := conn.ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) SELECT ? + n, IF(? + n < ?, 'bronze', 'gold'),"+
			" CONCAT('videos/', LPAD((? + n) DIV 1000, 5, '0'), '/', LPAD(? + n, 8, '0'), '.mp4') FROM numbers WHERE ? + n < ? ORDER BY n",
			from, from, firstInWorld+w.size.moving+w.size.pending, from, from, from, end)
		if err != nil {
			return err
		}
	}
	return nil
}

// readScript reads entries for a consumer.
//
//	KEYS  stream
//	ARGV  group, consumer, how many
//	->    how many it has read
const readScript = `
local got = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
return got and #got[1][2] or 0`

// fillStream appends events with their states, as the api does, and reads them as the relocator that is away.
func (w *world) fillStream(ctx context.Context) error {
	store := state.NewStore(state.Options{Redis: w.stack.Redis, Keys: w.stack.Keys, TTL: 24 * time.Hour, Lease: minIdle})
	if err := store.Agree(ctx); err != nil {
		return err
	}
	first := firstInWorld + w.size.moving
	for from := 0; from < w.size.pending; from += perCall {
		var views []event.View
		for id := first + from; id < first+min(from+perCall, w.size.pending); id++ {
			views = append(views, event.View{EventID: fmt.Sprintf("01890a5d-ac96-774b-bcce-%012x", id), ID: item.ID(id), Count: counts["gold"],
				Target: "gold", DBLevel: "bronze", Filename: filename(id), PostedAt: time.Now()})
		}
		if _, err := store.Append(ctx, views); err != nil {
			return err
		}
	}
	views := w.stack.Keys.Views()
	if err := w.stack.Redis.XGroupCreateMkStream(ctx, views, state.GroupRelocator, "0").Err(); err != nil {
		return err
	}
	for read := 0; read < w.size.pending; {
		n, err := w.stack.Redis.Eval(ctx, readScript, []string{views}, state.GroupRelocator, away, 10_000).Int()
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d of %d entries were there to be read", read, w.size.pending)
		}
		read += n
	}
	return nil
}

// fillTier makes empty files beside those that move.
func (w *world) fillTier(ctx context.Context) error {
	level, err := w.level(ctx, "bronze")
	if err != nil {
		return err
	}
	for id := firstInWorld + w.size.moving; id < firstInWorld+w.size.files; id++ {
		path := filepath.Join(level.Path, filename(id))
		if id%1000 == 0 || id == firstInWorld+w.size.moving {
			if err := errors.Join(ctx.Err(), os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) level(ctx context.Context, name string) (policy.Level, error) {
	levels, err := w.stack.Catalog.Policy(ctx)
	if err != nil {
		return policy.Level{}, err
	}
	level, ok := levels.Level(name)
	if !ok {
		return policy.Level{}, fmt.Errorf("there is no level %s", name)
	}
	return level, nil
}

// skip moves the relocators' group past the events posted so far. Relocators have nothing to do for these: all items are
// on the level that their counts call for.
func (w *world) skip(ctx context.Context) error {
	views := w.stack.Keys.Views()
	info, err := w.stack.Redis.XInfoStream(ctx, views).Result()
	if err != nil {
		return err
	}
	return w.stack.Redis.Do(ctx, "XGROUP", "SETID", views, state.GroupRelocator, info.LastGeneratedID, "ENTRIESREAD", info.EntriesAdded).Err()
}

// move posts a count for every file that moves in one call, waits for the last release, and returns the moves a second.
func (w *world) move(ctx context.Context) (float64, error) {
	to := map[string]string{"bronze": "silver", "silver": "bronze"}[w.at]
	var lines []byte
	for _, f := range w.files {
		lines = fmt.Appendf(lines, "{\"cid\":%d,\"count\":%d}\n", f.ID, counts[to])
	}
	if err := w.resetCommands(ctx); err != nil {
		return 0, err
	}
	syscall.Sync()
	begin := time.Now()
	if err := w.posts.postBatch(ctx, bytes.NewReader(lines), len(w.files)); err != nil {
		return 0, err
	}
	for deadline := begin.Add(2 * time.Minute); ; {
		err := w.settled(ctx)
		if err == nil {
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("not settled within two minutes: %w\n%s", err, w.stack.Logs())
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(begin)
	from := w.at
	w.at = to
	return float64(len(w.files)) / took.Seconds(), errors.Join(w.noteCommands(ctx), w.check(ctx, from, to))
}

// settled returns nil when only the entries of fillStream are pending and none is unread.
func (w *world) settled(ctx context.Context) error {
	pipe := w.stack.Redis.TxPipeline()
	groups := []struct {
		name    string
		pending int64
		info    *redis.XInfoGroupsCmd
	}{
		{state.GroupRelocator, int64(w.size.pending), pipe.XInfoGroups(ctx, w.stack.Keys.Views())},
		{state.GroupCommitter, 0, pipe.XInfoGroups(ctx, w.stack.Keys.Relocated())},
		{state.GroupReleaser, 0, pipe.XInfoGroups(ctx, w.stack.Keys.Committed())},
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	for _, want := range groups {
		found := false
		for _, g := range want.info.Val() {
			if g.Name != want.name {
				continue
			}
			found = true
			if g.Pending != want.pending || g.Lag != 0 {
				return fmt.Errorf("group %s: %d entries are pending, not %d, and %d unread", g.Name, g.Pending, want.pending, g.Lag)
			}
		}
		if !found {
			return fmt.Errorf("there is no group %s", want.name)
		}
	}
	return nil
}

// check checks that each file that has moved is on its new level with its bytes, and that its row names this level.
func (w *world) check(ctx context.Context, from, to string) error {
	source, err := w.level(ctx, from)
	if err != nil {
		return err
	}
	target, err := w.level(ctx, to)
	if err != nil {
		return err
	}
	ids := make([]item.ID, len(w.files))
	for i, f := range w.files {
		ids[i] = f.ID
	}
	rows, err := w.stack.Catalog.Rows(ctx, ids)
	if err != nil {
		return err
	}
	for i, f := range w.files {
		if rows[f.ID].Level != to {
			return fmt.Errorf("item %s: its row names %q, not %s", f.ID, rows[f.ID].Level, to)
		}
		digest, err := stack.Digest(filepath.Join(target.Path, f.Filename))
		if err != nil {
			return err
		}
		if digest != w.digests[i] {
			return fmt.Errorf("item %s: its bytes on %s are not those it had at first", f.ID, to)
		}
		if _, err := os.Lstat(filepath.Join(source.Path, f.Filename)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("item %s: it lies on %s still: %w", f.ID, from, err)
		}
	}
	return nil
}

// resetCommands resets the counters of Redis, so that the commands of the checks do not count.
func (w *world) resetCommands(ctx context.Context) error {
	return w.stack.Redis.ConfigResetStat(ctx).Err()
}

// noteCommands adds the counters of Redis to w.commands.
func (w *world) noteCommands(ctx context.Context) error {
	info, err := w.stack.Redis.Info(ctx, "commandstats").Result()
	if err != nil {
		return err
	}
	for _, m := range commandStats.FindAllStringSubmatch(info, -1) {
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return fmt.Errorf("INFO commandstats: %w", err)
		}
		us, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return fmt.Errorf("INFO commandstats: %w", err)
		}
		sum := w.commands[m[1]]
		w.commands[m[1]] = calls{sum.calls + n, sum.us + us}
	}
	return nil
}

var commandStats = regexp.MustCompile(`(?m)^cmdstat_([^:]+):calls=(\d+),usec=(\d+),`)
