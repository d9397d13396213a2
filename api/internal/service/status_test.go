package service_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestTheStatusSaysWhatWaitsForAHuman(t *testing.T) {
	a := start(t, options{})
	ctx := t.Context()
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	var got client.Status
	want := func(what string, kinds ...string) {
		t.Helper()
		testserver.Eventually(t, what, 30*time.Second, func() error {
			text := a.want(200, "GET", "/v1/status", "", &got)
			var found []string
			for _, one := range got.Attention {
				found = append(found, one.Kind)
			}
			if fmt.Sprint(found) != fmt.Sprint(kinds) {
				return fmt.Errorf("want %v: %s", kinds, text)
			}
			return nil
		})
	}
	reports := func(s state.Service) error {
		_, err := store.Report(ctx, s)
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	testserver.Eventually(t, "the api has reported itself", 30*time.Second, func() error {
		text := a.want(200, "GET", "/v1/status", "", &got)
		if len(got.Services) != 1 || got.Services[0].Program != "api" || !got.Services[0].Ready || got.Services[0].StartedAt == nil {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	version := got.Services[0].Version
	warned := len(got.Services[0].Warnings) > 0 // of the Redis of the tests, such as that it has no append-only file
	and := func(kinds ...string) []string {
		if warned {
			return append(kinds, "warning")
		}
		return kinds
	}
	want("nobody else lives", and("no-relocator", "no-committer")...)

	r := state.Service{Program: "relocator", ID: "r1", Version: version, StartedAt: time.Now()}
	must(reports(r))
	_, err := store.Heartbeat(ctx, state.GroupCommitter, state.Worker{ID: "c1"}, time.Minute) // of an older version: it sends heartbeats alone
	must(err)
	want("all live, and one is of an older version", and("versions")...)
	must(reports(state.Service{Program: "committer", ID: "c1", Version: version, StartedAt: time.Now()}))
	want("all live", and()...)

	r.Missing = map[string]string{"tiers": "level gold hangs"}
	must(reports(r))
	want("a relocator is not ready", and("not-ready")...)
	if what := got.Attention[0].What; !strings.Contains(what, "level gold hangs") || !strings.Contains(what, "r1") {
		t.Error(what)
	}
	r.Missing = nil
	must(reports(r))
	must(a.redis.XAdd(ctx, &redis.XAddArgs{Stream: a.keys.Dead(), Values: []string{"stage", "relocate"}}).Err())
	must(a.redis.XAdd(ctx, &redis.XAddArgs{Stream: a.keys.Relocated(), ID: "1-1", Values: []string{"cid", "7"}}).Err())
	want("an entry is old, and one is dead", and("old-entry", "dead-letters")...)
	must(a.redis.Del(ctx, a.keys.Dead(), a.keys.Relocated()).Err())
	must(store.SetPaused(ctx, true, "test"))
	want("moves are paused", append(and(), "paused")...)
	must(store.SetPaused(ctx, false, "test"))

	// The relocator is killed: its last report is a minute old.
	old := time.Now().Add(-time.Minute).UnixMilli()
	report := fmt.Sprintf(`%d {"program":"relocator","id":"r1","version":%q,"started_at":"2026-01-01T00:00:00Z"}`, old, version)
	must(a.redis.HSet(ctx, a.keys.Services(), "relocator r1", report).Err())
	if warned {
		want("the relocator was killed", "no-relocator", "lost", "warning")
	} else {
		want("the relocator was killed", "no-relocator", "lost")
	}
	must(store.Ended(ctx, r))
	want("the relocator was stopped", and("no-relocator")...)
}

func TestTheStatusHasEachTierInTheOrderOfTheLevelsAndTheRatesOfAll(t *testing.T) {
	a := start(t, options{})
	ctx := t.Context()
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	var got client.Status
	status := func() string { return a.want(200, "GET", "/v1/status", "", &got) }
	states := func() (found string) {
		for _, one := range got.Tiers {
			found += one.Level + " " + one.State + " "
		}
		return strings.TrimSpace(found)
	}
	said := func(kind string) (found string) {
		for _, one := range got.Attention {
			if one.Kind == kind {
				found += one.What + " "
			}
		}
		return strings.TrimSpace(found)
	}
	text := status()
	if got := states(); got != "bronze unknown silver unknown gold unknown" {
		t.Errorf("nobody reports: %s", text)
	}
	report := func(id, silver string) {
		t.Helper()
		v := state.Service{Program: "relocator", ID: id, StartedAt: time.Now(), GraceMS: 20 * 60_000,
			Rates: map[string]float64{state.RateMoves: 1.5, state.RateBytes: 1000},
			Tiers: []state.TierReport{
				{Level: "gold", State: state.TierFull, Reason: "no room", Since: time.Now(), Waiting: 93,
					TierFigures: state.TierFigures{TotalBytes: 1 << 30, UsedBytes: 1<<30 - 84<<10, FreeBytes: 84 << 10}},
				{Level: "silver", State: silver, Since: time.Now()}, {Level: "gone", State: state.TierAway},
			}}
		if _, err := store.Report(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	report("r1", state.TierOK)
	report("r2", state.TierReadOnly)
	text = status()
	if got := states(); got != "bronze unknown silver read-only gold full" {
		t.Errorf("%s: %s", got, text)
	}
	gold := got.Tiers[2]
	if gold.Path == "" || gold.Waiting != 186 || gold.FreeBytes == nil || *gold.FreeBytes != 84<<10 || gold.Since == nil || gold.TotalInodes != nil || gold.WorkerID == "" {
		t.Errorf("gold: %s", text)
	}
	want := "silver is read-only. The relocator r2 says so, and another one does not. 186 moves to gold wait: it is full, 84 KiB free. " +
		"bronze is unknown: no relocator reports it."
	if got := said("tier"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got.Rates.Moves != 3 || got.Rates.Bytes != 2000 {
		t.Errorf("rates: %+v", got.Rates)
	}

	// A release that waits for its grace of 20 minutes is not late.
	ago := func(d time.Duration) string { return fmt.Sprintf("%d-0", time.Now().Add(-d).UnixMilli()) }
	for _, c := range []struct {
		age  time.Duration
		late bool
	}{{19 * time.Minute, false}, {51 * time.Minute, true}} {
		if err := a.redis.Del(ctx, a.keys.Committed()).Err(); err != nil {
			t.Fatal(err)
		}
		if err := a.redis.XAdd(ctx, &redis.XAddArgs{Stream: a.keys.Committed(), ID: ago(c.age), Values: []string{"cid", "7"}}).Err(); err != nil {
			t.Fatal(err)
		}
		if text := status(); (said("old-entry") != "") != c.late {
			t.Errorf("a release that has waited for %s: %s", c.age, text)
		}
	}

	if _, err := a.db.DB().ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g.mp4')"); err != nil {
		t.Fatal(err)
	}
	a.want(202, "POST", "/v1/views", `{"cid":7,"count":1}`, nil)
	testserver.Eventually(t, "the view has a rate", 30*time.Second, func() error {
		if text := status(); got.Rates.Views <= 0 {
			return fmt.Errorf("%s", text)
		}
		return nil
	})

	// While MySQL is away, the tiers stay.
	if _, err := a.db.DB().ExecContext(ctx, "RENAME TABLE level TO level_away"); err != nil {
		t.Fatal(err)
	}
	text = status()
	if got := states(); got != "bronze unknown silver read-only gold full" {
		t.Errorf("without the levels: %s", text)
	}
}

func TestATierWhoseLevelDrainsIsShownSoUnlessSomethingIsWrongWithIt(t *testing.T) {
	a := start(t, options{})
	store := state.NewStore(state.Options{Redis: a.redis, Keys: a.keys, TTL: time.Hour, Lease: time.Minute})
	if _, err := a.db.DB().Exec("UPDATE level SET state = 'draining' WHERE content_level <> 'bronze'"); err != nil {
		t.Fatal(err)
	}
	v := state.Service{Program: "relocator", ID: "r1", StartedAt: time.Now()}
	for level, is := range map[string]string{"bronze": state.TierOK, "silver": state.TierOK, "gold": state.TierReadOnly} {
		v.Tiers = append(v.Tiers, state.TierReport{Level: level, State: is, Since: time.Now()})
	}
	if _, err := store.Report(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	var got client.Status
	text := a.want(200, "GET", "/v1/status", "", &got)
	var found []string
	for _, tier := range got.Tiers {
		found = append(found, tier.Level+" "+tier.State)
	}
	if want := []string{"bronze ok", "silver draining", "gold read-only"}; !slices.Equal(found, want) {
		t.Errorf("%v, want %v: %s", found, want, text)
	}
}
