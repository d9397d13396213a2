package service_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// counted makes an item that was counted, whose review is due.
func (a *api) counted(id int, level string, count int) {
	a.t.Helper()
	a.insert(id, level, fmt.Sprint(id))
	a.exec("UPDATE contents SET view_count = ?, generation = 1, review_at = UTC_TIMESTAMP(6) WHERE cid = ?", count, id)
}

// review tells in how many seconds the review of an item is due; ok is false where it is never.
func (a *api) review(id int) (seconds float64, ok bool) {
	a.t.Helper()
	var s sql.NullFloat64
	if err := a.db.DB().QueryRowContext(a.t.Context(), "SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), review_at) / 1000000"+
		" FROM contents WHERE cid = ?", id).Scan(&s); err != nil {
		a.t.Fatal(err)
	}
	return s.Float64, s.Valid
}

// passes lets so much time pass for all reviews.
func (a *api) passes(interval string) {
	a.t.Helper()
	a.exec("UPDATE contents SET review_at = review_at - INTERVAL " + interval)
}

// eventuallyReviewAfter waits until the review of an item is due in more than these seconds.
func (a *api) eventuallyReviewAfter(id int, seconds float64) {
	a.t.Helper()
	testserver.Eventually(a.t, "a review later", 30*time.Second, func() error {
		if s, ok := a.review(id); !ok || s < seconds {
			return fmt.Errorf("it is in %f s, %v", s, ok)
		}
		return nil
	})
}

func TestADueReviewPostsTheLastCountOnceAndIsDueAgainUntilItsEventIsSettled(t *testing.T) {
	a := start(t, options{})
	a.counted(7, "gold", 5)
	a.eventuallyViews(0, "7=5")
	if s, ok := a.review(7); !ok || s < 1 {
		t.Fatalf("the claim ends in %f s, %v: a lost event would not be repeated", s, ok)
	}
	a.passes("2 MINUTE") // the event is still under way, and would decide the same
	a.eventuallyReviewAfter(7, 120)
	a.eventuallyViews(0, "7=5")
	a.redis.Expire(t.Context(), a.keys.State(7), time.Hour) // it is settled, and the row was not written
	a.passes("20 MINUTE")
	a.eventuallyViews(0, "7=5", "7=5")
	a.redis.Del(t.Context(), a.keys.Views(), a.keys.State(7)) // Redis is wiped
	a.passes("2 MINUTE")
	a.eventuallyViews(0, "7=5")
}

func TestAReviewWhoseEventIsLostIsRepeated(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	lost := make(chan struct{}, 100)
	gate.Judge(func(request []byte) testserver.Fate {
		if bytes.Contains(request, []byte(":views")) && bytes.Contains(request, []byte("evalsha")) && bytes.Contains(request, []byte("event_id")) {
			lost <- struct{}{}
			return testserver.LoseRequest
		}
		return testserver.Pass
	})
	a.counted(7, "gold", 5)
	a.counted(8, "gold", 5)
	select {
	case <-lost: // as a kill between the claim and the append
	case <-time.After(30 * time.Second):
		t.Fatal("it has not begun")
	}
	gate.Judge(nil)
	for id := 7; id <= 8; id++ {
		if s, ok := a.review(id); !ok || s < 1 {
			t.Fatalf("the claim of %d ends in %f s, %v", id, s, ok)
		}
	}
	a.passes("2 MINUTE")
	a.eventuallyViews(0, "7=5", "8=5")
}

func TestAnEventWhoseTargetIsAnotherByNowHoldsUpNoReview(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	a.post("cid=7&count=1500") // to silver, and no relocator is there
	a.exec("UPDATE `level` SET max_counts = 1799 WHERE content_level = 'bronze'")
	a.exec("UPDATE `level` SET min_counts = 1800 WHERE content_level = 'silver'")
	a.exec("UPDATE contents SET review_at = UTC_TIMESTAMP(6)")
	a.eventuallyViews(1, "7=1500")
}

// Two apis, and neither takes an item twice. While somebody has their lock, neither does anything.
func TestOneAPIAtATimeTakesReviews(t *testing.T) {
	dsn, prefix := testserver.MySQL(t), testserver.Prefix(t)
	var apis [2]*api
	var asked [2]atomic.Int64 // how often an api has asked for the lock
	for i := range apis {
		gate, through := testserver.MySQLGate(t, dsn)
		gate.Judge(func(request []byte) testserver.Fate {
			if bytes.Contains(request, []byte("GET_LOCK('tierflow:reviews")) {
				asked[i].Add(1)
			}
			return testserver.Pass
		})
		apis[i] = start(t, options{mysqlDSN: through, prefix: prefix})
	}
	one, two := apis[0], apis[1]
	other, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	release := make(chan struct{})
	held := make(chan error, 1)
	locked := make(chan struct{})
	go func() {
		held <- other.Locked(context.Background(), "reviews", 30*time.Second, func(*sql.Conn) error { close(locked); <-release; return nil })
	}()
	<-locked
	var want []string
	for id := 1; id <= 30; id++ {
		one.counted(id, "gold", 5)
		want = append(want, fmt.Sprintf("%d=5", id))
	}
	testserver.Eventually(t, "both have asked twice", 30*time.Second, func() error {
		if asked[0].Load() < 2 || asked[1].Load() < 2 {
			return errors.New("they have not")
		}
		return nil
	})
	if got := two.views(); len(got) > 0 {
		t.Errorf("without the lock: %v", got)
	}
	close(release)
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "all", 30*time.Second, func() error {
		if got := one.views(); len(got) < len(want) {
			return errors.New(strings.Join(got, " "))
		}
		return nil
	})
	got := one.views()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("views %v", got)
	}
}

// An api is stopped after its claim. Another one takes over, newer counts come, and then the first goes on.
func TestAnAPIThatWakesUpLateAppendsNothingOld(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	direct, prefix := testserver.MySQL(t), testserver.Prefix(t)
	mysqlGate, dsn := testserver.MySQLGate(t, direct)
	one := start(t, options{redisURL: url, mysqlDSN: dsn, prefix: prefix})
	asleep, wake := make(chan struct{}), make(chan struct{})
	first := true
	gate.Judge(func(request []byte) testserver.Fate {
		if first && bytes.Contains(request, []byte("evalsha")) && bytes.Contains(request, []byte("event_id")) {
			first = false
			close(asleep)
			<-wake
		}
		return testserver.Pass
	})
	one.counted(7, "gold", 5)
	<-asleep
	mysqlGate.Close() // MySQL has ended its silent session
	two := start(t, options{mysqlDSN: direct, prefix: prefix})
	two.passes("2 MINUTE")
	two.eventuallyViews(0, "7=5")
	two.post("cid=7&count=6")
	close(wake)
	mysqlGate.Open()
	one.waitReady()
	one.post("cid=7&count=8")
	two.eventuallyViews(0, "7=5", "7=6", "7=8")
}

// The test settles what reviews append only when they have filled their half of the backlog. Views go on.
func TestManyReviewsThatAreDueAtOnceKeepTheBacklogWithinItsBound(t *testing.T) {
	const items, bound = 20_000, 1000
	a := start(t, options{maxBacklog: fmt.Sprint(bound)})
	for from := 1; from <= items; from += 1000 {
		rows := make([]string, 1000)
		for i := range rows {
			rows[i] = fmt.Sprintf("(%d, 'gold', '%d', 5, 1, '2026-01-01')", from+i, from+i)
		}
		a.exec("INSERT INTO contents (cid, content_level, filename, view_count, generation, review_at) VALUES " + strings.Join(rows, ","))
	}
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	seen := map[string]bool{}
	deadline := time.Now().Add(5 * time.Minute)
	for round := 0; len(seen) < items; round++ {
		if time.Now().After(deadline) {
			t.Fatalf("only %d of %d items were reviewed", len(seen), items)
		}
		testserver.Eventually(t, "half of the backlog is full, or nothing is left", 30*time.Second, func() error {
			n, err := store.Unsettled(t.Context())
			if err == nil && n > bound/2+1 { // a view, and reviews
				t.Fatalf("%d entries are not settled", n)
			}
			if err == nil && n < bound/2 && len(seen)+int(n) < items {
				err = fmt.Errorf("%d entries are not settled", n)
			}
			return err
		})
		if round%10 == 0 {
			if status, body := a.post("cid=1&count=5"); status != 200 {
				t.Fatalf("a view is refused: %d %s", status, body)
			}
		}
		read, err := a.redis.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "test",
			Streams: []string{a.keys.Views(), ">"}, Count: 400, Block: 100 * time.Millisecond}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range read[0].Messages {
			seen[m.Values["cid"].(string)] = true
			if err := a.redis.XAck(t.Context(), a.keys.Views(), state.GroupRelocator, m.ID).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Somebody has a transaction open on the row of one item. The change of the levels takes all others, and posts that one at once.
func TestALockedRowHoldsUpNoChangeOfLevels(t *testing.T) {
	a := start(t, options{})
	for id := 1; id <= 3; id++ {
		a.insert(id, "bronze", fmt.Sprint(id))
		a.exec("UPDATE contents SET view_count = 500, generation = 1 WHERE cid = ?", id)
	}
	tx, err := a.db.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := catalog.LockRows(t.Context(), tx, []any{2}); err != nil {
		t.Fatal(err)
	}
	a.want(200, "PUT", "/v1/levels", newLevels, nil)
	a.eventuallyViews(0, "2=500", "1=500", "3=500")
	if n := a.changes(); n != 0 {
		t.Errorf("%d changes are left", n)
	}
}

// An item rests on gold, and nobody watches it. Only its review moves it.
func TestAChangeOfLevelsRequiresTheReviewOfAnItemThatRests(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "gold", "g.mp4") // counted, and resting
	a.insert(8, "gold", "h.mp4") // put there on purpose
	a.exec("UPDATE contents SET view_count = 5, generation = 1 WHERE cid = 7")
	a.want(200, "PUT", "/v1/levels", strings.Replace(newLevels, `"/t/gold"`, `"/t/gold","min_residency":3600`, 1), nil)
	a.eventuallyReviewAfter(7, 3000)
	if s, ok := a.review(7); s > 3600 {
		t.Errorf("the review is in %f s, %v", s, ok)
	}
	testserver.Eventually(t, "the change is done", 30*time.Second, func() error {
		if a.changes() > 0 {
			return errors.New("it is not")
		}
		return nil
	})
	if s, ok := a.review(8); ok {
		t.Errorf("an item that was never counted has a review in %f s", s)
	}
	a.eventuallyViews(0)
}

func TestAPinThatNoRelocatorHearsOfTakesEffectByItsReview(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	a := start(t, options{redisURL: url})
	a.insert(7, "bronze", "g.mp4")
	gate.Close()
	a.wantProblem("PUT", "/v1/contents/7/pin", jsonT, `{"level":"gold"}`, 503, "unavailable", "the pin is stored")
	if s, ok := a.review(7); !ok || s > 60 {
		t.Fatalf("the review is in %f s, %v", s, ok)
	}
	gate.Open()
	a.passes("2 MINUTE")
	a.eventuallyViews(0, "7=0")
	if v := a.lastView(); v["target"] != "gold" {
		t.Errorf("%v", v)
	}
}
