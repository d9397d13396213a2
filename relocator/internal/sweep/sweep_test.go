package sweep_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

func TestTheEntryOfACrashedWorkerIsTakenOverAndItsTemporaryIsSwept(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	// A worker that dies after it has published: the lock, the entry and the temporary stay.
	w.Post(1, 5000)
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	w.FS.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.FsyncFolder {
			close(entered)
			<-ctx.Done() // never comes back while the others work
		}
		return nil
	}
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	rdb, err := state.Connect(url, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	living := w.Store
	w.Store = state.NewStore(state.Options{Redis: rdb, Keys: w.Store.Keys(), TTL: time.Hour, Lease: relocatortest.MinIdle})
	h := w.RelocateHandler("dying")
	w.FS.Hook, w.Store = nil, living
	if err := w.Redis.XGroupCreateMkStream(ctx, w.Store.Keys().Views(), state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	msgs, err := w.Redis.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "dying", Count: 1,
		Streams: []string{w.Store.Keys().Views(), ">"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for k, v := range msgs[0].Messages[0].Values {
		values[k] = v.(string)
	}
	handled := make(chan struct{})
	go func() {
		defer close(handled)
		h.Handle([]*stream.Delivery{{Single: true, ID: msgs[0].Messages[0].ID, Values: values, Attempt: 1, Context: ctx}})
	}()
	<-entered
	gate.Close() // from now on it renews nothing
	defer func() { cancel(); <-handled }()

	w.Relocator("r2")
	w.Releaser("r2")
	w.Committer()
	w.Settled()
	if err := w.Sweeper().Once(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Lies(1, "gold", body)
}

// temporary makes what a crashed attempt has left on a tier.
func temporary(w *relocatortest.World, level string, id int) string {
	name := fmt.Sprintf(".tierflow/tmp/%d.0192f0c0-0000-7000-8000-000000000000.crashed", id)
	w.File(level, name, nil)
	return w.Roots[level] + "/" + name
}

// gone returns an error where something is left of a temporary.
func gone(path string) error {
	for _, p := range []string{path, path + "-swept"} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %v", p, err)
		}
	}
	return nil
}

// strays counts the strays in `committed`.
func strays(w *relocatortest.World) int64 {
	w.T.Helper()
	n, err := w.Redis.XLen(context.Background(), w.Store.Keys().Committed()).Result()
	if err != nil {
		w.T.Fatal(err)
	}
	return n
}

func TestATierThatHangsHoldsUpNoOtherSweep(t *testing.T) {
	w := relocatortest.New(t)
	w.SetLease(0) // a sweep a second, of what is at least a second old
	hang := make(chan struct{})
	var hung, swept atomic.Int64
	w.FS.Hook = func(step fsys.Step, path string) error {
		switch {
		case step != fsys.Sweep:
		case strings.HasPrefix(path, w.Roots["bronze"]): // the first level
			hung.Add(1)
			<-hang
		case path == w.Roots["silver"]+"/.tierflow/tmp":
			swept.Add(1)
		}
		return nil
	}
	stuck, other := temporary(w, "bronze", 1), temporary(w, "silver", 2)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Sweeper().Run(ctx); close(done) }()
	w.Eventually("silver is swept", func() error { return gone(other) })
	again := swept.Load()
	w.Eventually("silver is swept again", func() error {
		if swept.Load() < again+4 {
			return errors.New("it is not")
		}
		return nil
	})
	if n := hung.Load(); n != 1 {
		t.Errorf("%d sweeps of bronze were begun while it hung", n)
	}
	close(hang)
	w.Eventually("bronze is swept when it answers", func() error { return gone(stuck) })
	stop()
	<-done
}

func TestATemporaryThatCannotBeRemovedIsNotReported(t *testing.T) {
	disk, _ := testdisk.Disk(t, "ext4", 32<<20)
	w := relocatortest.NewOn(t, disk)
	w.Item(1, "a")
	sweeper := w.Sweeper()
	var all []string
	for i := range 100 {
		all = append(all, strings.Replace(temporary(w, "gold", 1), "crashed", fmt.Sprintf("crashed%d", i), 1))
		if err := os.Rename(strings.Replace(all[i], fmt.Sprintf("crashed%d", i), "crashed", 1), all[i]); err != nil {
			t.Fatal(err)
		}
	}
	sweep := func(want int64, what string) error {
		t.Helper()
		var err error
		for range 3 {
			err = sweeper.Once(t.Context(), 0)
		}
		if n := strays(w); n != want {
			t.Errorf("%s: %d strays in committed, want %d", what, n, want)
		}
		return err
	}
	if err := w.Tiers.CheckRemove(w.Level("gold")); err != nil { // it is known to work
		t.Fatal(err)
	}
	testdisk.Run(t, "mount", "-o", "remount,ro", disk)
	if err := sweep(0, "the tier is read-only"); !fault.Is(err, fault.Suspect) || strings.Count(err.Error(), "read-only file system") != 1 {
		t.Errorf("the sweep goes on on a read-only tier: %v", err)
	}
	testdisk.Run(t, "mount", "-o", "remount,rw", disk)
	testdisk.Run(t, "chattr", "+i", all[7])
	if err := sweep(99, "one is immutable"); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("the sweep said %v", err)
	}
	testdisk.Run(t, "chattr", "-i", all[7])
	if err := sweep(100, "all can be removed"); err != nil {
		t.Error(err)
	}
	for _, path := range all {
		if err := gone(path); err != nil {
			t.Error(err)
		}
	}
}

func TestATierThatRestsIsNotSwept(t *testing.T) {
	w := relocatortest.New(t)
	left := temporary(w, "gold", 1)
	sweeper := w.Sweeper()
	gold := w.Level("gold")
	if err := w.Tiers.CheckRemove(gold); err != nil {
		t.Fatal(err)
	}
	_ = w.Tiers.Failed(&fault.Error{Kind: fault.TierRefused, Level: "gold"}, gold)
	if err := sweeper.Once(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if gone(left) == nil {
		t.Error("the tier was swept during its rest")
	}
	w.Eventually("the rest is over", func() error { return w.Tiers.CheckRemove(gold) })
	if err := sweeper.Once(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := gone(left); err != nil {
		t.Error(err)
	}
}
