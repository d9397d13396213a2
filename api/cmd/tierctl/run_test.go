package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/service"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/settings"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// api starts an api with API keys, and sets the variables of tierctl to its address and a key of all scopes. It returns the
// Redis of the api.
func api(t *testing.T) (redis.UniversalClient, state.Keys) {
	t.Helper()
	dsn, prefix := testserver.MySQL(t), testserver.Prefix(t)
	cat, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	if _, err := cat.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret, line, err := apikeys.Generate("all", apikeys.Views|apikeys.Read|apikeys.Operate)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"keys": line, "key": secret + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := service.Settings{
		Common: settings.Common{RedisURL: testserver.Redis(t), RedisPrefix: prefix, MySQLDSN: dsn, MinIdle: "30s", StateTTL: "24h",
			Partitions: "1", Drain: "20s", LogLevel: "info", LogFormat: "json"},
		Listen: "127.0.0.1:0", MaxBacklog: "1000", APIKeysFile: filepath.Join(dir, "keys"),
	}.Check()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	listening, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() { done <- service.Run(ctx, config, zap.NewNop(), func(a net.Addr) { listening <- a }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	at := "http://" + (<-listening).String()
	testserver.Eventually(t, "the api is ready", 30*time.Second, func() error {
		resp, err := http.Get(at + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return errors.New(resp.Status)
		}
		return nil
	})
	t.Setenv("TIERFLOW_URL", at)
	t.Setenv("TIERFLOW_API_KEY_FILE", filepath.Join(dir, "key"))
	rdb, err := state.Connect(testserver.Redis(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return rdb, state.NewKeys(prefix)
}

func tierctl(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// want runs a verb. It must succeed and print every text.
func want(t *testing.T, args string, texts ...string) string {
	t.Helper()
	code, out, errs := tierctl("", strings.Fields(args)...)
	if code != 0 || errs != "" {
		t.Fatalf("tierctl %s: exit code %d, %s", args, code, errs)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("tierctl %s: %q is not in\n%s", args, text, out)
		}
	}
	return out
}

// refused runs a verb. It must fail with the exit code and print why.
func refused(t *testing.T, code int, why string, args ...string) {
	t.Helper()
	if got, out, errs := tierctl("", args...); got != code || out != "" || !strings.Contains(errs, why) {
		t.Errorf("tierctl %q: exit code %d, %q, %q; want %d with %q", args, got, out, errs, code, why)
	}
}

func TestAnOperatorSeesAndChangesItemsOnTheCommandLine(t *testing.T) {
	rdb, keys := api(t)
	want(t, "register 7 g.mp4", "g.mp4", "bronze")
	want(t, "register 8 deep/h.mp4 --level silver", "deep/h.mp4", "silver")
	want(t, "list", "CID", "g.mp4", "deep/h.mp4")
	if out := want(t, "list --level silver"); strings.Contains(out, "g.mp4") {
		t.Errorf("of silver: %s", out)
	}
	want(t, "list --limit 1", "--after 7")
	want(t, "list --after 7", "deep/h.mp4")
	want(t, "post 7 1964", "update", "silver")
	want(t, "show 7", "newest count", "1964", "/srv/tierflow/bronze/g.mp4")
	want(t, "location 7", "bronze", "/srv/tierflow/bronze/g.mp4")
	want(t, "history 7", "TIME")
	want(t, "pin 7 gold", "gold")
	want(t, "unpin 7", "pinned")
	want(t, "pause", "paused")
	want(t, "relocations", "entries of all streams are not settled; relocations are paused")
	want(t, "resume", "go on")
	want(t, "forget 8", "done")
	refused(t, 1, "404 unknown-content", "show", "8")
	refused(t, 1, "409 conflict", "register", "7", "other")
	refused(t, 1, "422 unprocessable", "pin", "7", "platinum")

	var shown struct {
		CID      int64
		Filename string
	}
	if err := json.Unmarshal([]byte(want(t, "show 7 --json")), &shown); err != nil || shown.CID != 7 || shown.Filename != "g.mp4" {
		t.Errorf("%+v %v", shown, err)
	}

	id, err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: keys.Dead(), Values: []any{"event_id", "0192f0c0-0000-7000-8000-000000000000", "cid", "7", "count", "1", "target", "silver",
		"db_level", "bronze", "filename", "g\x1b[2J.mp4", "posted_at", "2026-01-01T00:00:00.000000Z", "stage", "relocate", "reason", "conflict", "error", "a file\nis there", "attempts", "1",
		"source_stream", keys.Views(), "source_id", "1-1", "failed_at", "2026-01-01T00:00:00.000000Z"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	if out := want(t, "dead", id, "conflict", `a file\nis there`); strings.Contains(out, "\x1b") {
		t.Errorf("a name controls the terminal: %q", out)
	}
	refused(t, 1, "409 conflict", "retry", id) // a newer count has come since
	want(t, "drop "+id, "done")
	refused(t, 1, "404 not-found", "drop", id)
}

func TestLevelsThatWereShownCanBeSetAgain(t *testing.T) {
	api(t)
	want(t, "levels", "LEVEL", "bronze", "1999", "gold")
	levels := strings.ReplaceAll(want(t, "levels --json"), "999", "998")
	if code, _, errs := tierctl(levels, "set-levels", "-"); code != 1 || !strings.Contains(errs, "422 unprocessable") {
		t.Errorf("levels with a gap: exit code %d, %s", code, errs)
	}
	levels = strings.NewReplacer(":1998", ":2499", ":2000", ":2500", ":998", ":999").Replace(levels)
	file := filepath.Join(t.TempDir(), "levels")
	if err := os.WriteFile(file, []byte(levels), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "plan "+file, "FROM", "gold has 0 items of 0 bytes, then 0 of 0")
	want(t, "levels", "1999")
	want(t, "set-levels "+file, "2499", "2500")
	refused(t, 1, "no such file", "set-levels", file+".not")
}

func TestRelocationsSayThatThereAreMoreAndWhatNoRelocatorReaches(t *testing.T) {
	rdb, keys := api(t)
	for id := range 3 {
		want(t, fmt.Sprintf("register %d %d.mp4", id+1, id+1))
		want(t, fmt.Sprintf("post %d 1964", id+1))
	}
	ctx := t.Context()
	if err := rdb.XGroupCreateMkStream(ctx, keys.Views(), state.GroupRelocator, "0").Err(); err != nil && !strings.Contains(err.Error(), "BUSYGROUP") {
		t.Fatal(err)
	}
	if err := rdb.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "w", Streams: []string{keys.Views(), ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.HSet(ctx, keys.Unreachable(), "bronze,silver", time.Now().UTC().Format(time.RFC3339Nano)).Err(); err != nil {
		t.Fatal(err)
	}
	out := want(t, "relocations --limit 2", "1.mp4", "2.mp4", "there are more: --after ", "3 entries of all streams are not settled",
		"entries wait for a relocator that reaches bronze and silver: none does")
	_, rest, _ := strings.Cut(out, "--after ")
	after, _, _ := strings.Cut(rest, "\n")
	if out := want(t, "relocations --after "+after, "3.mp4"); strings.Contains(out, "2.mp4") || strings.Contains(out, "there are more") {
		t.Errorf("the last page is %s", out)
	}
}

func TestEventsArePrintedAsTheyHappen(t *testing.T) {
	api(t)
	want(t, "register 7 g.mp4")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	screen, out := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"events", "--json"}, nil, out, io.Discard)
		out.Close()
	}()
	// The stream begins at an unknown time: post view events until one is printed.
	seen := make(chan client.Event, 1)
	go func() {
		var h client.Event
		if json.NewDecoder(screen).Decode(&h) == nil {
			seen <- h
		}
		_, _ = io.Copy(io.Discard, screen)
	}()
	for n := 0; ; n++ {
		want(t, fmt.Sprintf("post 7 %d", n))
		select {
		case h := <-seen:
			var fields map[string]string
			if err := json.Unmarshal(h.Data, &fields); err != nil || h.Event != "views" || fields["cid"] != "7" || h.ID == "" {
				t.Errorf("%+v %v", h, err)
			}
			stop()
			if c := <-code; c != 0 {
				t.Errorf("exit code %d after an interrupt", c)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestARefusalExitsWith1AndWrongArgumentsExitWith2(t *testing.T) {
	api(t)
	refused(t, 2, "expected", "show")
	refused(t, 2, "unexpected", "nonsense")
	refused(t, 2, "unexpected", "levels", "nonsense")
	refused(t, 2, "unexpected", "show", "7", "8")
	refused(t, 2, "unknown flag", "levels", "--nonsense")
	refused(t, 2, "TIERFLOW_URL", "--url", "localhost:5000", "levels")
	refused(t, 2, "/nowhere", "--api-key-file", "/nowhere", "levels")
	refused(t, 1, "refused", "--url", "http://127.0.0.1:1", "levels")
	t.Setenv("TIERFLOW_API_KEY_FILE", "")
	refused(t, 1, "401 unauthorized", "levels")
	refused(t, 1, "401 unauthorized", "events")
	refused(t, 1, "401 unauthorized", "--api-key", "tierflow_wrong", "levels")
	if code, out, _ := tierctl("", "version"); code != 0 || !strings.HasPrefix(out, "tierctl ") {
		t.Errorf("%d %q", code, out)
	}
}

func TestStatusExitsWithOneWhenSomethingWaitsForAHuman(t *testing.T) {
	rdb, keys := api(t)
	code, out, errs := tierctl("", "status")
	if code != 1 || errs != "" || !strings.Contains(out, "No relocator lives") || !strings.Contains(out, "STAGE") {
		t.Errorf("exit code %d, %q, %s", code, errs, out)
	}
	if code, out, _ := tierctl("", "status", "--json"); code != 1 || !strings.Contains(out, `"kind":"no-relocator"`) {
		t.Errorf("as JSON: exit code %d, %s", code, out)
	}
	store := state.NewStore(state.Options{Redis: rdb, Keys: keys, TTL: time.Hour, Lease: time.Minute})
	testserver.Eventually(t, "nothing waits", 30*time.Second, func() error {
		services, err := store.Services(t.Context(), time.Minute)
		if err != nil || len(services) == 0 {
			return fmt.Errorf("%v, %w", services, err)
		}
		for _, s := range services { // without the warnings of the Redis of the tests
			s.Warnings = nil
			for _, program := range []string{s.Program, "relocator", "committer"} {
				s.Program = program
				if _, err := store.Report(t.Context(), s); err != nil {
					return err
				}
			}
		}
		if code, out, _ := tierctl("", "status"); code != 0 || !strings.Contains(out, "nothing waits for a human") {
			return fmt.Errorf("exit code %d, %s", code, out)
		}
		return nil
	})
}

func TestStatusShowsTiersInHumanSizesAndAges(t *testing.T) {
	rdb, keys := api(t)
	store := state.NewStore(state.Options{Redis: rdb, Keys: keys, TTL: time.Hour, Lease: time.Minute})
	_, err := store.Report(t.Context(), state.Service{Program: "relocator", ID: "r1", StartedAt: time.Now(), Rates: map[string]float64{state.RateBytes: 3 << 20},
		Tiers: []state.TierReport{{Level: "gold", State: state.TierFull, Since: time.Now().Add(-2 * time.Hour), Waiting: 1234,
			TierFigures: state.TierFigures{TotalBytes: 10 << 30, UsedBytes: 10<<30 - 84<<10, FreeBytes: 84 << 10}}}})
	if err != nil {
		t.Fatal(err)
	}
	code, out, errs := tierctl("", "status")
	for _, want := range []string{"TIER ", "gold    full     2 hours  100%  10 GiB  84 KiB  1,234 ", "bronze  unknown  -        -     -       -       0 ", "3.0 MiB/s",
		"1,234 moves to gold wait: it is full, 84 KiB free. Make room"} {
		if code != 1 || errs != "" || !strings.Contains(out, want) {
			t.Errorf("exit code %d, %q; want %q:\n%s", code, errs, want, out)
		}
	}
}
