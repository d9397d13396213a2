package service_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// forgetting is an api with one item that waits to be moved, and a relocator's view of it.
type forgetting struct {
	*api
	store *state.Store
	entry string // of the item's view
	// before is called when the api is about to delete the row.
	before func()
}

const moveToken = state.Token("relocating e w r")

func newForgetting(t *testing.T) *forgetting {
	t.Helper()
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	f := &forgetting{api: start(t, options{mysqlDSN: dsn}), before: func() {}}
	f.store = state.NewStore(state.Options{Redis: f.redis, Keys: f.keys, TTL: time.Hour, Lease: time.Minute})
	f.insert(7, "bronze", "g.mp4")
	f.post("cid=7&count=1964")
	ms, err := f.redis.XRange(t.Context(), f.keys.Views(), "-", "+").Result()
	if err != nil || len(ms) != 1 {
		t.Fatal(ms, err)
	}
	f.entry = ms[0].ID
	// The relocator has read it: an entry that is not pending is nobody's to take where there is no state.
	if err := f.redis.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "w",
		Streams: []string{f.keys.Views(), ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	gate.Judge(func(request []byte) testserver.Fate {
		if bytes.Contains(request, []byte("DELETE FROM contents")) {
			f.before()
		}
		return testserver.Pass
	})
	return f
}

// take begins a move as a relocator does.
func (f *forgetting) take() state.Taken {
	f.t.Helper()
	taken, _, err := f.store.Take(f.t.Context(), f.entry, 7, moveToken, "w")
	if err != nil {
		f.t.Error(err)
	}
	return taken
}

func (f *forgetting) rows() (n int) {
	f.t.Helper()
	if err := f.db.DB().QueryRowContext(f.t.Context(), "SELECT COUNT(*) FROM contents WHERE cid = 7").Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func TestARelocatorCannotBeginAMoveOfAnItemWhoseRowIsBeingDeleted(t *testing.T) {
	f := newForgetting(t)
	during := state.Taken(-1)
	f.before = func() { during = f.take() }
	f.want(204, "DELETE", "/v1/contents/7", "", nil)
	if during != state.Busy {
		t.Errorf("between the check and the deletion a relocator got the lock: %v", during)
	}
	if f.take() != state.Mine || f.rows() != 0 || f.redis.Exists(t.Context(), f.keys.State(7)).Val() != 0 {
		t.Error("the lock, the row or the state is still there")
	}
}

func TestARowStaysWhereTheLockWasLostWhileItWasBeingDeleted(t *testing.T) {
	f := newForgetting(t)
	f.before = func() {
		f.redis.Del(t.Context(), f.keys.Lock(7)) // as if the lock had expired
		if f.take() != state.Mine {
			t.Error("the relocator did not get the lock")
		}
	}
	f.wantProblem("DELETE", "/v1/contents/7", "", "", 409, "conflict", "its lock has expired")
	if f.rows() != 1 {
		t.Error("a move is under way, and its row is gone")
	}
	if holder, err := f.store.Holder(t.Context(), 7); err != nil || holder != moveToken {
		t.Errorf("the relocator's lock is %q, %v", holder, err)
	}
}

func TestARowStaysWhileAMoveOrAReleaseIsNotSettledEvenWhereItsLockAndStateAreOlder(t *testing.T) {
	f := newForgetting(t)
	ctx := t.Context()
	if f.take() != state.Mine {
		t.Fatal("not taken")
	}
	st, _, err := f.store.Get(ctx, 7)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if ok, err := f.store.Emit(ctx, st, moveToken, event.Relocated{EventID: st.EventID, ID: 7, From: "bronze", To: "silver", Filename: "g.mp4",
		Count: 1964, Method: "link", WorkerID: "w", StartedAt: now, FinishedAt: now}); err != nil || !ok {
		t.Fatal(ok, err)
	}
	// The committer stays away until the lock has expired, and a newer event has replaced the state.
	f.redis.Del(ctx, f.keys.Lock(7))
	f.post("cid=7&count=5")
	f.wantProblem("DELETE", "/v1/contents/7", "", "", 409, "conflict", "not committed yet")
	ms, err := f.redis.XRange(ctx, f.keys.Relocated(), "-", "+").Result()
	if err != nil || len(ms) != 1 {
		t.Fatal(ms, err)
	}
	f.redis.XGroupCreate(ctx, f.keys.Relocated(), state.GroupCommitter, "$")
	f.exec("UPDATE contents SET content_level = 'silver' WHERE cid = 7")
	for _, err := range f.store.Finish(ctx, []state.Finished{{EntryID: ms[0].ID, RowLevel: "silver", Event: event.Committed{EventID: st.EventID,
		ID: 7, From: "bronze", To: "silver", Filename: "g.mp4", Outcome: event.OutcomeCommitted, CommittedAt: now}}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.wantProblem("DELETE", "/v1/contents/7", "", "", 409, "conflict", "not released yet")
	f.redis.XGroupCreate(ctx, f.keys.Committed(), state.GroupReleaser, "$")
	f.want(204, "DELETE", "/v1/contents/7", "", nil)
}

func TestARowIsDeletedWhereTheReplyOfCommitIsLostAndTheLockStays(t *testing.T) {
	gate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
	a := start(t, options{mysqlDSN: dsn})
	a.insert(7, "bronze", "g.mp4")
	gate.Judge(func(request []byte) testserver.Fate {
		if bytes.Contains(request, []byte("COMMIT")) {
			return testserver.LoseReply
		}
		return testserver.Pass
	})
	a.wantProblem("DELETE", "/v1/contents/7", "", "", 503, "unavailable", "the reply of COMMIT was lost")
	if n := a.redis.Exists(t.Context(), a.keys.Lock(7)).Val(); n != 1 {
		t.Error("a relocator could look the row up before it is gone")
	}
}
