package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// counts has a count for each level of a new database that calls for this level.
var counts = map[string]item.Count{"bronze": 0, "silver": 1000, "gold": 2000}

// tierflow is a whole Tierflow with files of one size, which it moves from level to level. Redis syncs every second and
// MySQL syncs every commit, as both do by default. The grace is 0, so a move ends with the release.
type tierflow struct {
	*Bench
	stack *stack.Stack
	redis *localserver.Redis
	mysql *localserver.MySQL
	files []stack.Sample
	spent cost // for each count of the last postAll
}

func startTierflow(ctx context.Context, b *Bench, o stack.Options, files []stack.Sample) (*tierflow, error) {
	t, err := prepareTierflow(ctx, b, o, files)
	if err != nil {
		return nil, err
	}
	return t, t.stack.Start(ctx)
}

// prepareTierflow starts the servers and no service.
func prepareTierflow(ctx context.Context, b *Bench, o stack.Options, files []stack.Sample) (*tierflow, error) {
	redis, err := b.Redis(ctx, localserver.Options{Dir: filepath.Join(o.Dir, "redis")})
	if err != nil {
		return nil, err
	}
	mysql, err := b.MySQL(ctx, localserver.Options{Dir: filepath.Join(o.Dir, "mysql"), Durable: true})
	if err != nil {
		return nil, err
	}
	o.RedisURL, o.MySQLDSN = redis.URL(), mysql.DSN("tierflow")
	settings := map[string]string{"TIERFLOW_RELEASE_GRACE": "0s", "TIERFLOW_LOG_LEVEL": "warn"}
	for name, value := range o.Settings {
		settings[name] = value
	}
	o.Settings = settings
	s, err := b.Stack(ctx, o)
	if err != nil {
		return nil, err
	}
	return &tierflow{Bench: b, stack: s, redis: redis, mysql: mysql, files: files}, s.Add(ctx, files...)
}

// smallFiles returns n files of 16 KiB, a thousand in each folder.
func smallFiles(n int, level string) []stack.Sample {
	files := make([]stack.Sample, n)
	for i := range files {
		files[i] = stack.Sample{ID: item.ID(firstID + i), Level: level, Size: 16 << 10,
			Filename: fmt.Sprintf("videos/%02d/%05d.mp4", i/1000, i)}
	}
	return files
}

// moveAll posts for every file a count that calls for the level: see postAll.
func (t *tierflow) moveAll(ctx context.Context, level string) (time.Duration, error) {
	return t.postAll(ctx, counts[level])
}

// postAll posts a count for every file in one call, waits for all moves and releases, and returns the time since the call.
// It checks that every file is in one place with its bytes, and that every row and every history is right.
func (t *tierflow) postAll(ctx context.Context, count item.Count) (time.Duration, error) {
	views := make([]client.View, len(t.files))
	for i, f := range t.files {
		views[i] = client.View{CID: f.ID, Count: count}
	}
	syscall.Sync() // so that writing earlier data to the disk is not measured
	m, err := startMeter(t.programs())
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := t.stack.PostAll(ctx, views); err != nil {
		return 0, err
	}
	took, err := t.settled(ctx, begin)
	if err != nil {
		return 0, err
	}
	used, err := m.used()
	if err != nil {
		return 0, err
	}
	t.spent = costOf(used, len(t.files))
	return took, t.stack.CheckSettled(ctx)
}

// programs returns the process ids of a Tierflow with one relocator, and of its servers.
func (t *tierflow) programs() map[string]int {
	return map[string]int{"api": t.stack.API.PID(), "relocator": t.stack.Relocators[0].PID(), "committer": t.stack.Committer.PID(),
		"Redis": t.redis.PID(), "MySQL": t.mysql.PID()}
}

// settled waits until all entries of all streams are settled.
func (t *tierflow) settled(ctx context.Context, begin time.Time) (time.Duration, error) {
	for deadline := begin.Add(5 * time.Minute); ; {
		err := t.stack.Settled(ctx)
		switch {
		case err == nil:
			return time.Since(begin), nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case time.Now().After(deadline):
			return 0, fmt.Errorf("not settled within five minutes: %w\n%s", err, t.stack.Logs())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// inMemory makes a folder on another file system than the part's. It is removed when the part ends.
func (b *Bench) inMemory(bytes int64) (string, error) {
	folder, ok := stack.SecondFilesystem(b.Dir, uint64(bytes))
	if !ok {
		return "", errors.New("found no second file system with room, such as /dev/shm")
	}
	b.Cleanup(func() error { return os.RemoveAll(folder) })
	return folder, nil
}
