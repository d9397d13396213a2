package service

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testdisk.Main(func() { testserver.Main(m) }) }

// call runs the program as main does.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Main(ctx, args, &out, &errs, fsys.FS{})
	return code, out.String(), errs.String()
}

func TestVersionNamesTheProgram(t *testing.T) {
	if code, out, _ := call(t.Context(), "version"); code != 0 || !strings.HasPrefix(out, "relocator ") {
		t.Errorf("exit code %d, %q", code, out)
	}
}

func TestWrongSettingsAreAllNamedAtOnce(t *testing.T) {
	for name, value := range map[string]string{
		"TIERFLOW_REDIS_URL": "http://x", "TIERFLOW_MYSQL_DSN": "nonsense", "TIERFLOW_MIN_IDLE": "soon", "TIERFLOW_CONCURRENCY": "0",
		"TIERFLOW_MAX_ATTEMPTS": "-1", "TIERFLOW_RELEASE_GRACE": "-1s", "TIERFLOW_VERIFY": "no", "TIERFLOW_BANDWIDTH": "fast",
		"TIERFLOW_DRAIN": "x", "TIERFLOW_STATE_TTL": "x", "TIERFLOW_PARTITIONS": "0", "TIERFLOW_LOG_LEVEL": "loud",
		"TIERFLOW_LOG_FORMAT": "x", "TIERFLOW_ADMIN_LISTEN": "x", "TIERFLOW_REDIS_PREFIX": "a{b", "TIERFLOW_WORKER_ID": "a b",
	} {
		t.Setenv(name, value)
	}
	code, _, errs := call(t.Context(), "serve")
	if code != 2 {
		t.Errorf("exit code %d", code)
	}
	for _, name := range []string{"TIERFLOW_REDIS_URL", "TIERFLOW_MYSQL_DSN", "TIERFLOW_MIN_IDLE", "TIERFLOW_CONCURRENCY",
		"TIERFLOW_MAX_ATTEMPTS", "TIERFLOW_RELEASE_GRACE", "TIERFLOW_VERIFY", "TIERFLOW_BANDWIDTH", "TIERFLOW_DRAIN", "TIERFLOW_STATE_TTL",
		"TIERFLOW_PARTITIONS", "TIERFLOW_LOG_LEVEL", "TIERFLOW_LOG_FORMAT", "TIERFLOW_ADMIN_LISTEN", "TIERFLOW_REDIS_PREFIX",
		"TIERFLOW_WORKER_ID"} {
		if !strings.Contains(errs, name+":") {
			t.Errorf("%s is not named in %s", name, errs)
		}
	}
}

func TestAnUnknownFlagIsAWrongSetting(t *testing.T) {
	if code, _, errs := call(t.Context(), "serve", "--no-such-flag"); code != 2 || !strings.Contains(errs, "no-such-flag") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

// environment points the program at servers and at three tiers, which do not exist yet.
func environment(t *testing.T) (cat *catalog.Catalog, root string) {
	t.Helper()
	dsn := testserver.MySQL(t)
	t.Setenv("TIERFLOW_REDIS_URL", testserver.Redis(t))
	t.Setenv("TIERFLOW_REDIS_PREFIX", testserver.Prefix(t))
	t.Setenv("TIERFLOW_MYSQL_DSN", dsn)
	cat, err := catalog.Open(dsn, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cat.Close() })
	root = t.TempDir()
	return cat, root
}

func migrate(t *testing.T, cat *catalog.Catalog, root string) {
	t.Helper()
	if _, err := cat.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"bronze", "silver", "gold"} {
		if _, err := cat.DB().Exec("UPDATE level SET path = ? WHERE content_level = ?", root+"/"+l, l); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInitTiersMakesIdentitiesOnceAndRefusesAForeignOne(t *testing.T) {
	cat, root := environment(t)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 1 || !strings.Contains(errs, "migrate") {
		t.Errorf("without a schema: exit code %d, %q", code, errs)
	}
	migrate(t, cat, root)
	code, first, errs := call(t.Context(), "init-tiers")
	if code != 0 || strings.Count(first, "\n") != 3 {
		t.Fatalf("exit code %d, %q, %s", code, first, errs)
	}
	before, err := os.ReadFile(root + "/gold/.tierflow/tier.json")
	if err != nil {
		t.Fatal(err)
	}
	code, second, _ := call(t.Context(), "init-tiers")
	after, err := os.ReadFile(root + "/gold/.tierflow/tier.json")
	if code != 0 || second != first || err != nil || !bytes.Equal(before, after) {
		t.Errorf("the second time: exit code %d, %q, %v", code, second, err)
	}
	if err := os.Rename(root+"/gold/.tierflow", root+"/keep"); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t.Context(), "init-tiers"); code != 1 || !strings.Contains(errs, "gold") {
		t.Errorf("a disk that is not mounted: exit code %d, %q", code, errs)
	}
	if err := os.CopyFS(root+"/gold/.tierflow", os.DirFS(root+"/silver/.tierflow")); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t.Context(), "init-tiers"); code != 1 || !strings.Contains(errs, "gold") {
		t.Errorf("another tier's identity: exit code %d, %q", code, errs)
	}
}

func TestWhatATierCannotDoIsSaidByInitTiersAndReadyz(t *testing.T) {
	cat, root := environment(t)
	for level, mode := range map[string]string{"gold": "case", "silver": "rewrite"} {
		if err := os.Symlink(testdisk.Folding(t, mode), root+"/"+level); err != nil {
			t.Fatal(err)
		}
	}
	migrate(t, cat, root)
	const cannot = "cannot rename without replacing (RENAME_NOREPLACE)"
	code, out, errs := call(t.Context(), "init-tiers")
	if code != 1 || strings.Count(out, "\n") != 2 {
		t.Errorf("exit code %d, %q", code, out)
	}
	for _, want := range []string{"warning: gold", cannot, "takes names for one that differ in case", "silver (" + root + "/silver): its folders list a name in another spelling"} {
		if !strings.Contains(errs, want) {
			t.Errorf("%s does not say %q", errs, want)
		}
	}
	var id string
	if err := cat.DB().QueryRow("SELECT tier_id FROM level WHERE content_level = 'silver'").Scan(&id); err != nil || id != "" {
		t.Errorf("the refused tier has the id %q, %v", id, err)
	}
	if _, err := cat.DB().Exec("UPDATE level SET path = ? WHERE content_level = 'silver'", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	readyz, stop := serveNow(t)
	testserver.Eventually(t, "readyz warns", 20*time.Second, func() error {
		code, body := readyz()
		if code != 200 || !strings.Contains(body, `"warnings":{"tiers":"gold (`+root+`/gold): `) || !strings.Contains(body, cannot) {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	stop()
}

func TestVerifyHasAnExitCodeForEachAnswer(t *testing.T) {
	cat, root := environment(t)
	if code, _, _ := call(t.Context(), "verify"); code != 2 {
		t.Errorf("without a schema: exit code %d", code)
	}
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	if code, out, errs := call(t.Context(), "verify", "--digest"); code != 0 || out != "" {
		t.Errorf("clean: exit code %d, %q, %s", code, out, errs)
	}
	if err := os.Rename(root+"/silver", root+"/away"); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := call(t.Context(), "verify"); code != 3 || out != "" || !strings.Contains(errs, "the tier of level silver was not looked at") {
		t.Errorf("without a tier: exit code %d, %q, %s", code, out, errs)
	}
	if err := os.Rename(root+"/away", root+"/silver"); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t.Context(), "verify", "--by-size"); code != 2 || !strings.Contains(errs, "--repair") {
		t.Errorf("--by-size alone: exit code %d, %s", code, errs)
	}
	if _, err := cat.DB().Exec("INSERT INTO contents (cid, content_level, filename) VALUES (7, 'gold', 'g.mp4')"); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := call(t.Context(), "verify", "--repair"); code != 1 || !strings.HasPrefix(out, "missing\t7\tgold\t\"g.mp4\"\t") {
		t.Errorf("a finding: exit code %d, %q", code, out)
	}
}

// serveNow serves until the test ends; stop ends it with the exit code 0. readyz answers with status and body.
func serveNow(t *testing.T) (readyz func() (int, string), stop func()) {
	t.Helper()
	port, err := localserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	admin := fmt.Sprintf("127.0.0.1:%d", port)
	t.Setenv("TIERFLOW_ADMIN_LISTEN", admin)
	t.Setenv("TIERFLOW_LOG_LEVEL", "error")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { code, _, _ := call(ctx, "serve"); done <- code }()
	readyz = func() (int, string) {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	stop = sync.OnceFunc(func() {
		t.Helper()
		cancel()
		select {
		case code := <-done:
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
		case <-time.After(20 * time.Second):
			t.Error("it did not stop")
		}
	})
	t.Cleanup(stop)
	return readyz, stop
}

func TestARelocatorAnswersAPauseWhenItBeginsNoMoves(t *testing.T) {
	cat, root := environment(t)
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	readyz, stop := serveNow(t)
	testserver.Eventually(t, "it is ready", 20*time.Second, func() error {
		if code, body := readyz(); code != 200 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	rdb, err := state.Connect(os.Getenv("TIERFLOW_REDIS_URL"), 3)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(os.Getenv("TIERFLOW_REDIS_PREFIX")), TTL: time.Hour, Lease: time.Minute})
	for _, pause := range []string{"the first", "the second"} { // an answer to one is none to the other
		if err := store.SetPaused(t.Context(), true, pause); err != nil {
			t.Fatal(err)
		}
		testserver.Eventually(t, pause+" is answered", 20*time.Second, func() error {
			if missing, err := store.NotHolding(t.Context(), pause, time.Hour); err != nil || len(missing) > 0 {
				return fmt.Errorf("%v, %w", missing, err)
			}
			return nil
		})
	}
	// From here on it begins nothing: what is added stays unread.
	id, err := rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: store.Keys().Views(), Values: []string{"cid", "7"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	groups, err := rdb.XInfoGroups(t.Context(), store.Keys().Views()).Result()
	if err != nil || len(groups) != 1 || groups[0].LastDeliveredID == id {
		t.Errorf("groups %+v, %v", groups, err)
	}
}

func TestServeNamesWhatIsMissingWaitsForItAndStopsWithZero(t *testing.T) {
	cat, root := environment(t)
	readyz, stop := serveNow(t)
	testserver.Eventually(t, "readyz names the schema", 10*time.Second, func() error {
		if code, body := readyz(); code != 503 || !strings.Contains(body, "committer migrate") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if code, _, _ := call(t.Context(), "healthcheck"); code != 1 {
		t.Errorf("healthcheck of one that is not ready: %d", code)
	}
	migrate(t, cat, root)
	testserver.Eventually(t, "readyz names the tiers", 10*time.Second, func() error {
		if code, body := readyz(); code != 503 || !strings.Contains(body, "init-tiers") || strings.Contains(body, "migrate") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	testserver.Eventually(t, "it is ready", 10*time.Second, func() error {
		if code, _, errs := call(t.Context(), "healthcheck"); code != 0 {
			return fmt.Errorf("%s", errs)
		}
		return nil
	})
	stop()
}

func TestServeThatCannotSendHeartbeatsIsNotReadyAndSaysWhatToDo(t *testing.T) {
	cat, root := environment(t)
	prefix := testserver.Prefix(t)
	url, allow := testserver.RedisUser(t, "+@all", "~"+prefix+"partitions", "~"+prefix+"paused", "~"+prefix+"views", "~"+prefix+"committed")
	t.Setenv("TIERFLOW_REDIS_PREFIX", prefix)
	t.Setenv("TIERFLOW_REDIS_URL", url)
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	readyz, stop := serveNow(t)
	testserver.Eventually(t, "readyz names the key", 20*time.Second, func() error {
		code, body := readyz()
		if code != 503 || !strings.Contains(body, "Redis user use the key "+prefix+"workers:relocator") || strings.Contains(body, `"redis"`) {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	allow("~" + prefix + "*")
	testserver.Eventually(t, "it is ready", 20*time.Second, func() error {
		if code, body := readyz(); code != 200 || !strings.Contains(body, `"attends":[0]`) {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	stop()
}

func TestReadyzSaysWhyRowsAreNotWritten(t *testing.T) {
	cat, root := environment(t)
	migrate(t, cat, root)
	if code, _, errs := call(t.Context(), "init-tiers"); code != 0 {
		t.Fatal(errs)
	}
	exec := func(statement string) {
		t.Helper()
		if _, err := cat.DB().Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("INSERT INTO contents (cid, content_level, filename) VALUES (7, 'bronze', 'g.mp4')")
	exec("CREATE TRIGGER refuse BEFORE UPDATE ON contents FOR EACH ROW SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 3100, MESSAGE_TEXT = 'not now'")
	readyz, stop := serveNow(t)
	rdb, err := state.Connect(os.Getenv("TIERFLOW_REDIS_URL"), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	store := state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys(os.Getenv("TIERFLOW_REDIS_PREFIX")), TTL: time.Hour, Lease: time.Minute})
	_, err = store.Append(t.Context(), []event.View{{EventID: "01934567-89ab-7cde-8f01-23456789abcd", ID: 7, Count: 3, Target: "bronze", DBLevel: "bronze",
		Filename: "g.mp4", PostedAt: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "readyz has the server's words", 20*time.Second, func() error {
		code, body := readyz()
		if code != 503 || !strings.Contains(body, "mysql-writes") || !strings.Contains(body, "Error 3100") || !strings.Contains(body, "not now") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	exec("DROP TRIGGER refuse")
	testserver.Eventually(t, "it is ready, and the count is in the row", 20*time.Second, func() error {
		code, body := readyz()
		row, err := cat.Row(t.Context(), 7)
		if code != 200 || err != nil || row.ViewCount != 3 {
			return fmt.Errorf("%d %s, %+v, %v", code, body, row, err)
		}
		return nil
	})
	stop()
}
