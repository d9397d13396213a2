package lookup_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/lookup"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// counted is a real catalog that counts queries, and can hold one up.
type counted struct {
	*catalog.Catalog
	queries atomic.Int64       // for rows
	levels  atomic.Int64       // for the levels
	hold    chan chan struct{} // where it is not nil, a query waits for it before it returns
}

func (c *counted) Placements(ctx context.Context, ids []item.ID, fn func(catalog.Row)) error {
	c.queries.Add(1)
	err := c.Catalog.Placements(ctx, ids, fn)
	if c.hold != nil {
		release := make(chan struct{})
		c.hold <- release
		<-release
	}
	return err
}

func (c *counted) Policy(ctx context.Context) (policy.Policy, error) {
	c.levels.Add(1)
	return c.Catalog.Policy(ctx)
}

func open(t *testing.T, n int) (*lookup.Cache, *counted) {
	t.Helper()
	db, err := catalog.Open(testserver.MySQL(t), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= n; i++ {
		if _, err := db.DB().Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", i, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	c := &counted{Catalog: db}
	cache := lookup.New(lookup.Options{Catalog: c, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { cache.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return cache, c
}

func TestManyRequestsShareFewQueries(t *testing.T) {
	cache, db := open(t, 50)
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			f, err := cache.Find(t.Context(), item.ID(i%50+1))
			if err != nil || f.Row.ID != item.ID(i%50+1) || f.Policy.Decide(f.Row.Item(1500), time.Now()).Target != "silver" {
				t.Error(f, err)
			}
		})
	}
	wg.Wait()
	if n := db.queries.Load(); n > 60 {
		t.Fatalf("%d queries for 500 requests of 50 items", n)
	}
	before := db.queries.Load()
	ids := []item.ID{1, 99, 2, 1}
	var got []string
	cache.FindMany(t.Context(), ids, func(i int, f lookup.Found, err error) {
		got = append(got, fmt.Sprintf("%d %s %t", i, fault.KindOf(err), err == nil && f.Row.ID == ids[i]))
	})
	if fmt.Sprint(got) != "[0  true 1 unknown-content false 2  true 3  true]" || db.queries.Load() > before+1 {
		t.Fatalf("%q, %d queries", got, db.queries.Load()-before)
	}
}

func TestARowThatIsInvalidatedWhileItIsReadIsReadAgain(t *testing.T) {
	cache, db := open(t, 1)
	db.hold = make(chan chan struct{})
	done := make(chan error, 1)
	find := func() (level string) {
		go func() {
			f, err := cache.Find(t.Context(), 1)
			if err == nil {
				level = f.Row.Level
			}
			done <- err
		}()
		release := <-db.hold
		if _, err := db.DB().Exec("UPDATE contents SET content_level = 'gold' WHERE cid = 1"); err != nil {
			t.Fatal(err)
		}
		cache.Invalidate(1)
		close(release)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return level
	}
	if level := find(); level != "bronze" {
		t.Fatalf("the first query began before the change and found %s", level)
	}
	if level := find(); level != "gold" {
		t.Fatalf("the old row was still used: %s", level)
	}
}

func TestARowThatIsUsedIsRenewedBeforeItExpiresAndSoAreTheLevels(t *testing.T) {
	cache, db := open(t, 1)
	find := func() {
		if f, err := cache.Find(t.Context(), 1); err != nil || f.Row.Filename != "1" {
			t.Fatal(f, err)
		}
	}
	find()
	find() // uses the row
	testserver.Eventually(t, "a query that nobody asked for", 10*time.Second, func() error {
		if n := db.queries.Load(); n < 2 {
			return fmt.Errorf("%d queries", n)
		}
		return nil
	})
	if levels, rows := db.levels.Load(), db.queries.Load(); levels < rows {
		t.Errorf("%d queries for levels, %d for rows: requests would wait for the levels", levels, rows)
	}
	// No request uses the row any more. Run renews it a few more times and then stops.
	seen, since := db.queries.Load(), time.Now()
	testserver.Eventually(t, "the end of the queries", 30*time.Second, func() error {
		if n := db.queries.Load(); n != seen {
			seen, since = n, time.Now()
		}
		if quiet := time.Since(since); quiet < 2*time.Second { // longer than two renewals take
			return fmt.Errorf("a query %s ago", quiet)
		}
		return nil
	})
}
