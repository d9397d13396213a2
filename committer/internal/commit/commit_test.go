package commit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestACommitIsFinishedInRedisAndSettled(t *testing.T) {
	w := newWorld(t, 1)
	w.post(1, 1, "gold")
	lock := w.store.Keys().Lock(1)
	w.rdb.Set(t.Context(), lock, "emitted "+eventID(1)+" relocating "+eventID(1)+" r1 x", time.Minute)
	w.run()
	w.emit(relocated(1, 1).Fields())
	w.settled()
	w.expectRow(1, "gold", 1, 1)
	if s := w.state(1); s.DBLevel != "gold" {
		t.Errorf("state: %s", s.JSON())
	}
	if n := w.rdb.Exists(t.Context(), lock).Val(); n != 0 {
		t.Error("the lock is still there")
	}
	cs := w.committed()
	if len(cs) != 1 {
		t.Fatalf("committed: %+v", cs)
	}
	c := cs[0]
	if time.Since(c.CommittedAt).Abs() > time.Minute {
		t.Errorf("committed at %s", c.CommittedAt)
	}
	c.CommittedAt = time.Time{}
	if c != (event.Committed{EventID: eventID(1), ID: 1, From: "bronze", To: "gold", Filename: "f1.mp4", Generation: 1,
		Outcome: event.OutcomeCommitted}) {
		t.Errorf("committed: %+v", c)
	}
	if views := w.entries(w.store.Keys().Views()); len(views) != 1 {
		t.Errorf("views: %v", views)
	}
	for name, want := range map[string]float64{
		"tierflow_committer_settled_total committed": 1, "tierflow_committer_settled_total superseded": 0,
		"tierflow_committer_latency_seconds": 1, "tierflow_committer_commit_seconds": 1, "tierflow_committer_batch_entries": 1,
	} {
		if got := w.counted(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestTheCopyOfASupersededMoveIsReleased(t *testing.T) {
	w := newWorld(t, 1)
	w.exec("UPDATE contents SET generation = 3")
	w.run()
	w.emit(relocated(1, 1).Fields())
	w.settled()
	w.expectRow(1, "bronze", 3, 0)
	if cs := w.committed(); len(cs) != 1 || cs[0].Outcome != event.OutcomeSuperseded || cs[0].Clears() != "gold" {
		t.Errorf("committed: %+v", cs)
	}
	if got := w.counted("tierflow_committer_settled_total superseded"); got != 1 {
		t.Errorf("%v counted", got)
	}
}

func TestTheNewestEventIsAppendedAgain(t *testing.T) {
	t.Run("when a commit led to another level", func(t *testing.T) {
		w := newWorld(t, 1)
		w.post(1, 1, "gold")
		w.post(2, 1, "silver")
		w.run()
		w.emit(relocated(1, 1).Fields())
		w.settled()
		w.expectAppended(eventID(2), "silver", "gold", 3)
	})
	t.Run("when it was superseded itself", func(t *testing.T) {
		w := newWorld(t, 1)
		w.post(1, 1, "gold")
		w.exec("UPDATE contents SET generation = 1")
		w.run()
		w.emit(relocated(1, 1).Fields())
		w.settled()
		w.expectAppended(eventID(1), "gold", "bronze", 2)
	})
	t.Run("but not when an older one was superseded", func(t *testing.T) {
		w := newWorld(t, 1)
		w.post(2, 1, "silver")
		w.exec("UPDATE contents SET generation = 1")
		w.run()
		w.emit(relocated(1, 1).Fields())
		w.settled()
		if views := w.entries(w.store.Keys().Views()); len(views) != 1 {
			t.Errorf("views: %v", views)
		}
	})
}

func TestAnEntryThatCanNeverBeCommittedBecomesADeadLetterAtOnceAndHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 3)
	nowhere := relocated(2, 2)
	nowhere.To = "nowhere"
	unreadable := map[string]string{"event_id": "not one", "cid": "3", "extra": "kept"}
	w.emit(relocated(1, 1).Fields())
	second := w.emit(nowhere.Fields())
	third := w.emit(event.Ordered(unreadable))
	w.emit(relocated(3, 3).Fields())
	w.run()
	w.settled()
	w.expectRow(1, "gold", 1, 1)
	w.expectRow(2, "bronze", 0, 0)
	w.expectRow(3, "gold", 1, 1)
	fs, es := w.dead()
	slices.SortFunc(fs, func(a, b event.Failure) int { return strings.Compare(a.SourceID, b.SourceID) })
	if len(fs) != 2 {
		t.Fatalf("dead: %+v", fs)
	}
	for i, want := range []event.Failure{
		{Reason: string(fault.Unprocessable), SourceID: second}, {Reason: string(fault.Malformed), SourceID: third},
	} {
		f := fs[i]
		if f.Stage != "commit" || f.Reason != want.Reason || f.SourceID != want.SourceID || f.Error == "" || f.Attempts != 1 ||
			f.SourceStream != w.store.Keys().Relocated() {
			t.Errorf("dead: %+v", f)
		}
		if got := w.counted("tierflow_committer_dead_total " + want.Reason); got != 1 {
			t.Errorf("%v of %s counted", got, want.Reason)
		}
	}
	if !slices.ContainsFunc(es, func(e map[string]string) bool { return maps.Equal(e, unreadable) }) {
		t.Errorf("the unreadable entry is not as it was: %v", es)
	}
}

func TestAnEntryThatFailsForAnUnknownReasonIsTriedAgainAndThenBecomesADeadLetter(t *testing.T) {
	w := newWorld(t, 2)
	w.attempts = 2
	var failed atomic.Int64
	// The real thing, but for one event.
	w.apply = func(next func(context.Context, []event.Relocated) []apply.Result) func(context.Context, []event.Relocated) []apply.Result {
		return func(ctx context.Context, es []event.Relocated) []apply.Result {
			rs := make([]apply.Result, len(es))
			for i, e := range es {
				if e.EventID == eventID(1) {
					failed.Add(1)
					rs[i].Err = errors.New("no idea")
					continue
				}
				rs[i] = next(ctx, es[i:i+1])[0]
			}
			return rs
		}
	}
	w.emit(relocated(1, 1).Fields())
	w.emit(relocated(2, 2).Fields())
	w.run()
	w.settled()
	fs, _ := w.dead()
	if len(fs) != 1 || fs[0].Reason != "exhausted" || fs[0].Attempts != 2 || fs[0].Error != "no idea" || failed.Load() != 2 {
		t.Errorf("dead after %d failures: %+v", failed.Load(), fs)
	}
	w.expectRow(1, "bronze", 0, 0)
	w.expectRow(2, "gold", 1, 1)
}

func TestTheEntryOfALockedRowWaitsAndCountsNoAttempt(t *testing.T) {
	w := newWorld(t, 2)
	w.attempts = 1
	tx, err := w.db.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE contents SET view_count = 1 WHERE cid = 1"); err != nil {
		t.Fatal(err)
	}
	w.emit(relocated(1, 1).Fields())
	w.emit(relocated(2, 2).Fields())
	w.run()
	testserver.Eventually(t, "the other one is committed", 20*time.Second, func() error {
		if cs := w.committed(); len(cs) != 1 || cs[0].ID != 2 {
			return fmt.Errorf("committed: %+v", cs)
		}
		return nil
	})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.expectRow(1, "gold", 1, 1)
	if fs, _ := w.dead(); len(fs) != 0 {
		t.Errorf("dead: %+v", fs)
	}
}

func TestAFinishWhoseReplyIsLostIsRepeated(t *testing.T) {
	w := newWorld(t, 1)
	w.post(1, 1, "gold")
	gate, url := testserver.RedisGate(t, w.redisURL)
	cut := gate.CutReply("emitted " + eventID(1))
	w.start("w1", url, w.dsn)
	w.emit(relocated(1, 1).Fields())
	<-cut
	testserver.Eventually(t, "it is finished a second time", 20*time.Second, func() error {
		if cs := w.committed(); len(cs) != 2 || cs[0] != cs[1] {
			return fmt.Errorf("committed: %+v", cs)
		}
		return nil
	})
	w.settled()
	w.expectRow(1, "gold", 1, 1)
	if s := w.state(1); s.DBLevel != "gold" {
		t.Errorf("state: %s", s.JSON())
	}
}

// firstPipeline holds up the first pipeline of scripts.
type firstPipeline struct {
	redis.Hook
	once    sync.Once
	begun   chan struct{}
	goingOn chan struct{}
}

func (f *firstPipeline) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (f *firstPipeline) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (f *firstPipeline) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if strings.HasPrefix(cmds[len(cmds)-1].Name(), "eval") {
			f.once.Do(func() {
				close(f.begun)
				<-f.goingOn
			})
		}
		return next(ctx, cmds)
	}
}

func TestTheNextBatchIsAppliedWhileRedisFinishesTheLastAndNeverTwoAtOnce(t *testing.T) {
	const n = 50
	w := newWorld(t, n)
	hook := &firstPipeline{begun: make(chan struct{}), goingOn: make(chan struct{})}
	w.hook = hook
	var applying atomic.Int64
	applied := make(chan struct{}, n)
	w.apply = func(next func(context.Context, []event.Relocated) []apply.Result) func(context.Context, []event.Relocated) []apply.Result {
		return func(ctx context.Context, es []event.Relocated) []apply.Result {
			if applying.Add(1) > 1 {
				t.Error("two transactions at once")
			}
			defer func() {
				applying.Add(-1)
				applied <- struct{}{}
			}()
			return next(ctx, es)
		}
	}
	w.run()
	w.emit(relocated(1, 1).Fields())
	<-hook.begun
	<-applied
	w.emit(relocated(2, 2).Fields())
	select {
	case <-applied:
	case <-time.After(20 * time.Second):
		t.Error("the second batch waits until Redis has finished the first")
	}
	close(hook.goingOn)
	for id := item.ID(3); id <= n; id++ {
		w.emit(relocated(int(id), id).Fields())
	}
	w.settled()
	for id := item.ID(1); id <= n; id++ {
		w.expectRow(id, "gold", 1, 1)
	}
}

func TestACommitThatMySQLDidNotConfirmIsCommittedOnce(t *testing.T) {
	w := newWorld(t, 20)
	gate, dsn := testserver.MySQLGate(t, w.dsn)
	for id := item.ID(1); id <= 20; id++ {
		w.emit(relocated(int(id), id).Fields())
	}
	cut := gate.CutReply("\x03COMMIT")
	w.start("w1", w.redisURL, dsn)
	<-cut
	w.settled()
	for id := item.ID(1); id <= 20; id++ {
		w.expectRow(id, "gold", 1, 1)
	}
	if cs := w.committed(); len(cs) != 20 {
		t.Errorf("%d entries of committed", len(cs))
	}
}

func TestNothingIsLostWhileAServerIsAway(t *testing.T) {
	for _, server := range []string{"mysql", "redis"} {
		t.Run(server, func(t *testing.T) {
			w := newWorld(t, 30)
			w.attempts = 1 // being away is no attempt
			redisURL, dsn := w.redisURL, w.dsn
			var gate *testserver.Gate
			if server == "mysql" {
				gate, dsn = testserver.MySQLGate(t, w.dsn)
			} else {
				gate, redisURL = testserver.RedisGate(t, w.redisURL)
			}
			w.start("w1", redisURL, dsn)
			for id := item.ID(1); id <= 10; id++ {
				w.emit(relocated(int(id), id).Fields())
			}
			w.settled()
			gate.Close()
			for id := item.ID(11); id <= 30; id++ {
				w.emit(relocated(int(id), id).Fields())
			}
			if server == "mysql" {
				testserver.Eventually(t, "a batch was given up", 20*time.Second, func() error {
					if w.looked.Load() == 0 {
						return errors.New("not yet")
					}
					return nil
				})
			}
			gate.Open()
			w.settled()
			for id := item.ID(1); id <= 30; id++ {
				w.expectRow(id, "gold", 1, 1)
			}
			if fs, _ := w.dead(); len(fs) != 0 {
				t.Errorf("dead: %+v", fs)
			}
		})
	}
}

func TestSeveralCommittersAndDoubleEntriesCommitEachMoveOnce(t *testing.T) {
	const n = 300
	w := newWorld(t, n)
	stops := []func(){w.run(), w.start("w2", w.redisURL, w.dsn)}
	w.start("w3", w.redisURL, w.dsn)
	for id := item.ID(1); id <= n; id++ {
		w.emit(relocated(int(id), id).Fields())
		w.emit(relocated(int(id), id).Fields())
		if id == n/3 || id == n/2 {
			stops[0]() // what it has in hand it finishes or hands back
			stops = stops[1:]
		}
	}
	w.settled()
	for id := item.ID(1); id <= n; id++ {
		w.expectRow(id, "gold", 1, 1)
	}
	for _, c := range w.committed() {
		if c.Outcome != event.OutcomeCommitted {
			t.Errorf("%+v", c)
		}
	}
	if fs, _ := w.dead(); len(fs) != 0 {
		t.Errorf("dead: %+v", fs)
	}
}

func TestTheEntriesOfACommitterThatDiedAreTakenOver(t *testing.T) {
	w := newWorld(t, 2)
	key := w.store.Keys().Relocated()
	if err := w.rdb.XGroupCreateMkStream(t.Context(), key, state.GroupCommitter, "0").Err(); err != nil {
		t.Fatal(err)
	}
	w.emit(relocated(1, 1).Fields())
	w.emit(relocated(2, 2).Fields())
	if err := w.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupCommitter, Consumer: "died",
		Streams: []string{key, ">"}, Count: 10}).Err(); err != nil {
		t.Fatal(err)
	}
	// It had committed the first before it died, and not finished it.
	apply.New(w.db.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1)})
	w.run()
	w.settled()
	w.expectRow(1, "gold", 1, 1)
	w.expectRow(2, "gold", 1, 1)
	if cs := w.committed(); len(cs) != 2 {
		t.Errorf("committed: %+v", cs)
	}
}

func TestAnEntryThatHasHadManyAttemptsIsCommittedAlone(t *testing.T) {
	w := newWorld(t, 5)
	var batches []int
	w.apply = func(next func(context.Context, []event.Relocated) []apply.Result) func(context.Context, []event.Relocated) []apply.Result {
		return func(ctx context.Context, es []event.Relocated) []apply.Result {
			batches = append(batches, len(es))
			return next(ctx, es)
		}
	}
	for n := 1; n <= 5; n++ {
		w.emit(relocated(n, item.ID(n)).Fields())
	}
	w.comeBack(3)
	stop := w.run()
	w.settled()
	stop()
	if !slices.Equal(batches, []int{1, 1, 1, 1, 1}) {
		t.Errorf("batches of %v", batches)
	}
	for id := item.ID(1); id <= 5; id++ {
		w.expectRow(id, "gold", 1, 1)
	}
}

func TestAnEntryThatCrashesItsCommittersBecomesADeadLetterAndHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 2)
	w.emit(relocated(1, 1).Fields())
	w.comeBack(32)
	w.emit(relocated(2, 2).Fields())
	w.run()
	w.settled()
	fs, _ := w.dead()
	if len(fs) != 1 || fs[0].Reason != "exhausted" || fs[0].Stage != "commit" || fs[0].Attempts != 33 {
		t.Errorf("dead: %+v", fs)
	}
	w.expectRow(1, "bronze", 0, 0)
	w.expectRow(2, "gold", 1, 1)
}
