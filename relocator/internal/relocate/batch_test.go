package relocate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// scripts counts the scripts that a client has sent.
type scripts struct{ n atomic.Int64 }

func (s *scripts) count(cmds ...redis.Cmder) {
	for _, c := range cmds {
		if c.Name() == "evalsha" || c.Name() == "eval" {
			s.n.Add(1)
		}
	}
}

func (s *scripts) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (s *scripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.count(cmd)
		return next(ctx, cmd)
	}
}

func (s *scripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.count(cmds...)
		return next(ctx, cmds)
	}
}

// left waits until only these entries are pending or unread.
func left(w *relocatortest.World, ids ...string) {
	w.T.Helper()
	w.Eventually(fmt.Sprintf("only %v are left", ids), func() error {
		views := w.Store.Keys().Views()
		infos, err := w.Redis.XInfoGroups(context.Background(), views).Result()
		if err != nil || len(infos) != 1 || infos[0].Lag != 0 || infos[0].Pending != int64(len(ids)) {
			return fmt.Errorf("%+v, %v", infos, err)
		}
		for _, id := range ids {
			p, err := w.Redis.XPendingExt(context.Background(), &redis.XPendingExtArgs{Stream: views, Group: state.GroupRelocator,
				Start: id, End: id, Count: 1}).Result()
			if err != nil || len(p) != 1 {
				return fmt.Errorf("%s is not: %v", id, err)
			}
		}
		return nil
	})
}

// withoutKeys runs a statement that foreign keys would refuse.
func withoutKeys(w *relocatortest.World, q string, args ...any) {
	w.T.Helper()
	conn, err := w.Catalog.DB().Conn(context.Background())
	if err != nil {
		w.T.Fatal(err)
	}
	defer conn.Close()
	for _, one := range []struct {
		q    string
		args []any
	}{{"SET foreign_key_checks = 0", nil}, {q, args}, {"SET foreign_key_checks = 1", nil}} {
		if _, err := conn.ExecContext(context.Background(), one.q, one.args...); err != nil {
			w.T.Fatal(err)
		}
	}
}

func TestManyEventsThatMoveNothingCostFewScriptsAndNoLocks(t *testing.T) {
	w := relocatortest.New(t)
	const items = 150
	entries := map[int]string{}
	for id := 1; id <= items; id++ {
		w.Item(id, fmt.Sprintf("f%d", id))
	}
	for round := range 2 { // the first of each item is superseded
		for id := 1; id <= items; id++ {
			entries[id] = w.Post(id, 100+round)
		}
	}
	counted := &scripts{}
	w.Redis.AddHook(counted)
	w.Relocator("r1")
	w.Settled()
	if n := counted.n.Load(); n > 10 {
		t.Errorf("%d scripts for %d events", n, 2*items)
	}
	for id := 1; id <= items; id++ {
		if r := w.Row(id); r.ViewCount != 101 || r.CountEntry != entries[id] || r.Generation != 1 {
			t.Errorf("row %+v", r)
		}
		if ttl := w.Redis.TTL(t.Context(), w.Store.Keys().State(item.ID(id))).Val(); ttl <= 0 {
			t.Errorf("the state of %d lives for %s", id, ttl)
		}
	}
}

// Each entry that is no plain view is in one batch with many that are.
func TestWhatIsNoPlainViewHoldsUpNothingElseOfItsBatch(t *testing.T) {
	w := relocatortest.New(t)
	const plain = 50
	for id := 1; id <= plain+4; id++ {
		w.Item(id, fmt.Sprintf("f%d", id))
	}
	const locked, busy, gone, unknown = plain + 1, plain + 2, plain + 3, 99
	tx, err := w.Catalog.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("UPDATE contents SET view_count = 1 WHERE cid = ?", locked); err != nil {
		t.Fatal(err)
	}
	if who, err := w.Store.Lock(t.Context(), busy, "releasing other 1"); err != nil || who != "" {
		t.Fatal(who, err)
	}
	if err := w.Redis.Persist(t.Context(), w.Store.Keys().Lock(busy)).Err(); err != nil {
		t.Fatal(err)
	}
	ids := map[int]string{}
	for id := 1; id <= plain+3; id++ {
		ids[id] = w.Post(id, 12)
	}
	w.Post(unknown, 12)
	withoutKeys(w, "UPDATE contents SET pinned_level = 'no such level' WHERE cid = ?", gone)
	if err := w.Redis.XAdd(t.Context(), &redis.XAddArgs{Stream: w.Store.Keys().Views(), Values: []string{"cid", "six"}}).Err(); err != nil {
		t.Fatal(err)
	}
	w.Relocator("r1")
	left(w, ids[locked], ids[busy])
	for id := 1; id <= plain; id++ {
		if r := w.Row(id); r.CountEntry != ids[id] {
			t.Errorf("row %+v", r)
		}
	}
	got := map[any]any{}
	for _, m := range w.DeadLetters(3) {
		got[m.Values["cid"]] = m.Values["reason"]
	}
	want := map[any]any{"six": "malformed", fmt.Sprint(unknown): "unknown-content", fmt.Sprint(gone): "unprocessable"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("dead letters\n%v, not\n%v", got, want)
	}
	if err := errors.Join(tx.Commit(), w.Redis.Del(t.Context(), w.Store.Keys().Lock(busy)).Err()); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	for _, id := range []int{locked, busy} {
		if r := w.Row(id); r.CountEntry != ids[id] {
			t.Errorf("row %+v", r)
		}
	}
}

func TestARowThatMySQLRefusesHoldsUpNothingElseOfItsBatch(t *testing.T) {
	w := relocatortest.New(t)
	ids := map[int]string{}
	for id := 1; id <= 20; id++ {
		w.Item(id, fmt.Sprintf("f%d", id))
		ids[id] = w.Post(id, 12)
	}
	w.Exec("CREATE TRIGGER refuses BEFORE UPDATE ON contents FOR EACH ROW" +
		" BEGIN IF NEW.cid = 7 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not today'; END IF; END")
	w.Relocator("r1")
	left(w, ids[7])
	w.DeadLetters(0)
	w.Exec("DROP TRIGGER refuses")
	w.Settled()
	for id, entry := range ids {
		if r := w.Row(id); r.CountEntry != entry {
			t.Errorf("row %+v", r)
		}
	}
}

// The api had looked the items up before they were pinned.
func TestAnEventIsDecidedByTheRowAndNotByWhatTheApiKnew(t *testing.T) {
	w := relocatortest.New(t)
	moves, stays := w.Item(1, "a"), w.Item(2, "b")
	w.Post(1, 12)
	w.Post(2, 12)
	if err := os.Rename(filepath.Join(w.Roots["bronze"], "b"), filepath.Join(w.Roots["silver"], "b")); err != nil {
		t.Fatal(err)
	}
	w.Exec("UPDATE contents SET pinned_level = 'silver'")
	w.Exec("UPDATE contents SET content_level = 'silver' WHERE cid = 2")
	w.Run()
	w.Settled()
	w.Lies(1, "silver", moves)
	w.Lies(2, "silver", stays)
	for id := range 2 {
		if st, _, err := w.Store.Get(t.Context(), item.ID(id+1)); err != nil || st.Target != "silver" || st.DBLevel != "silver" || st.Status != state.Done {
			t.Errorf("state %+v, %v", st, err)
		}
	}
}

func TestTheLastCountOfAnItemIsSettledSoonThoughItsRowWasWrittenAMomentAgo(t *testing.T) {
	w := relocatortest.New(t)
	w.Item(1, "a")
	w.Relocator("r1")
	last := ""
	for count := 1; count <= 200; count++ {
		last = w.Post(1, count)
	}
	w.Settled()
	if r := w.Row(1); r.ViewCount != 200 || r.CountEntry != last {
		t.Errorf("row %+v", r)
	}
	if ttl := w.Redis.TTL(t.Context(), w.Store.Keys().State(1)).Val(); ttl <= 0 {
		t.Errorf("the state lives for %s", ttl)
	}
	if err := w.Redis.Del(t.Context(), w.Store.Keys().State(1)).Err(); err != nil { // it expires
		t.Fatal(err)
	}
	last = w.Post(1, 3)
	w.Settled()
	if r := w.Row(1); r.ViewCount != 3 || r.CountEntry != last {
		t.Errorf("row %+v", r)
	}
}

// TestTheLastCountStaysWhateverHappensToTheWorkers posts random counts of a few items. Meanwhile workers are cut off from Redis
// for longer than their lease, within a batch or between two, and others take over. Some workers stop and come back.
func TestTheLastCountStaysWhateverHappensToTheWorkers(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	w := relocatortest.New(t)
	const items = 5
	for id := 1; id <= items; id++ {
		w.Item(id, fmt.Sprintf("f%d", id))
	}
	w.Releaser("r1")
	w.Committer()
	direct := w.Store
	var gates []*testserver.Gate
	for _, worker := range []string{"a", "b"} {
		gate, url := testserver.RedisGate(t, testserver.Redis(t))
		rdb, err := state.Connect(url, 3)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rdb.Close() })
		gates = append(gates, gate)
		w.Store = state.NewStore(state.Options{Redis: rdb, Keys: direct.Keys(), TTL: time.Second, Lease: relocatortest.MinIdle})
		w.Relocator(worker)
	}
	w.Store = direct
	stop := w.Relocator("c")
	counts := []int{0, 3, 12, 12, 40, 1500, 5000} // most move nothing
	last, entries := map[int]int{}, map[int]string{}
	for range 8 {
		for range 30 {
			id := 1 + random.IntN(items)
			last[id] = counts[random.IntN(len(counts))]
			entries[id] = w.Post(id, last[id])
		}
		gate := gates[random.IntN(len(gates))]
		gate.Close()
		for range 10 {
			id := 1 + random.IntN(items)
			last[id] = counts[random.IntN(len(counts))]
			entries[id] = w.Post(id, last[id])
			time.Sleep(time.Duration(random.Int64N(int64(relocatortest.MinIdle) / 4)))
		}
		gate.Open()
		if random.IntN(3) == 0 {
			stop()
			stop = w.Relocator("c")
		}
	}
	w.Settled()
	for id, count := range last {
		r := w.Row(id)
		if int(r.ViewCount) != count || r.CountEntry < entries[id] {
			t.Errorf("item %d: row %+v; the last count was %d, of %s", id, r, count, entries[id])
		}
	}
	w.DeadLetters(0)
}
