package compose_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestWithoutDotEnvTheErrorSaysWhatToRun(t *testing.T) {
	dir := t.TempDir()
	b := must[[]byte](t)(os.ReadFile(filepath.Join(w.clone, "docker-compose.yml")))
	ok(t, os.WriteFile(filepath.Join(dir, "docker-compose.yml"), b, 0o644))
	out, err := w.commandWith([]string{"STACK_VERSION=", "COMPOSE_FILE=" + filepath.Join(dir, "docker-compose.yml")}, "docker",
		"compose", "--env-file", "/dev/null", "up", "-d")
	if err == nil || !strings.Contains(out, "run ./scripts/up") {
		t.Errorf("docker compose up: %v\n%s", err, out)
	}
}

func TestASecondUpChangesNothing(t *testing.T) {
	w.begin(t)
	look := func() (all []string) {
		for _, s := range []string{"mysql", "redis", "api", "relocator", "committer"} {
			all = append(all, w.containers(t, s)...)
		}
		ok(t, filepath.WalkDir(filepath.Join(w.clone, "secrets"), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				b, err := os.ReadFile(path)
				all = append(all, path, string(b))
				return err
			}
			return err
		}))
		return all
	}
	before := look()
	must[string](t)(w.command("./scripts/up"))
	if after := look(); !slices.Equal(after, before) {
		t.Errorf("containers and secrets were\n%q\nand are\n%q", before, after)
	}
}

func TestNothingRunsAsRootOrWithMoreThanItNeeds(t *testing.T) {
	w.begin(t)
	for _, service := range []string{"mysql", "redis", "migrate", "accounts", "tiers", "api", "relocator", "committer"} {
		w.checkHardened(t, service)
	}
}

// checkHardened checks what must be true of every container.
func (w *world) checkHardened(t *testing.T, services ...string) {
	t.Helper()
	for _, service := range services {
		var c struct {
			Config struct {
				User string
				Env  []string
			}
			HostConfig struct {
				ReadonlyRootfs, Privileged bool
				CapAdd, CapDrop            []string
				SecurityOpt                []string
				Memory                     int64
				PidsLimit                  *int64
				RestartPolicy              struct{ Name string }
				LogConfig                  struct{ Config map[string]string }
			}
		}
		id := w.containers(t, service)[0]
		ok(t, json.Unmarshal([]byte(w.inspect(t, id, "{{json .}}")), &c))
		h := c.HostConfig
		if c.Config.User == "" || strings.HasPrefix(c.Config.User, "0") || strings.HasPrefix(c.Config.User, "root") {
			t.Errorf("%s runs as %q", service, c.Config.User)
		}
		if !h.ReadonlyRootfs || h.Privileged || len(h.CapAdd) > 0 || !slices.Equal(h.CapDrop, []string{"ALL"}) ||
			!slices.Contains(h.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: %+v", service, h)
		}
		if h.Memory == 0 || h.PidsLimit == nil || *h.PidsLimit <= 0 || h.LogConfig.Config["max-size"] == "" {
			t.Errorf("%s: memory %d, pids %v, log %v: something has no limit", service, h.Memory, h.PidsLimit, h.LogConfig.Config)
		}
		want := "unless-stopped"
		if slices.Contains(jobs, service) {
			want = "no"
		}
		if h.RestartPolicy.Name != want {
			t.Errorf("%s: restart policy %q, want %q", service, h.RestartPolicy.Name, want)
		}
		for _, name := range must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(w.clone, "secrets"))) {
			if name.IsDir() {
				continue
			}
			if s, err := w.secret(name.Name()); err != nil || strings.Contains(strings.Join(c.Config.Env, "\n"), s) {
				t.Errorf("the environment of %s shows the secret %s (%v)", service, name.Name(), err)
			}
		}
	}
}

func TestOnlyTheApiAndTheEdgeArePublishedAndOnLoopback(t *testing.T) {
	out := must[string](t)(w.commandWith([]string{"COMPOSE_FILE=docker-compose.yml", "STACK_LISTEN=", "STACK_EDGE_LISTEN="}, "docker", "compose",
		"--profile", "*", "config", "--format", "json"))
	var c struct {
		Services map[string]struct {
			Ports []struct {
				HostIP string `json:"host_ip"`
			}
		}
	}
	ok(t, json.Unmarshal([]byte(out), &c))
	for name, s := range c.Services {
		for _, p := range s.Ports {
			if ip := net.ParseIP(p.HostIP); name != "api" && name != "edge" || ip == nil || !ip.IsLoopback() {
				t.Errorf("%s publishes a port on %q", name, p.HostIP)
			}
		}
	}
	for _, name := range []string{"api", "edge"} {
		if len(c.Services[name].Ports) != 1 {
			t.Errorf("%s publishes %v", name, c.Services[name].Ports)
		}
	}
}

func TestImagesAreSmallAndSayTheirVersion(t *testing.T) {
	w.begin(t)
	for _, service := range []string{"api", "relocator", "committer"} {
		image := "tierflow-" + service + ":" + w.version
		size, err := strconv.Atoi(must[string](t)(w.command("docker", "image", "inspect", "--format", "{{.Size}}", image)))
		if t.Logf("%s: %.1f MB", image, float64(size)/1e6); err != nil || size >= 26_000_000 {
			t.Errorf("%s has %d bytes (%v), 26 MB are allowed", image, size, err)
		}
		out := must[string](t)(w.command("docker", "run", "--rm", "--network", "none", image, "version"))
		if !strings.Contains(out, w.version) {
			t.Errorf("%s version: %s", service, out)
		}
	}
}

func TestTheApiAsksForAKeyAndTakesANewOneWithoutARestart(t *testing.T) {
	w.begin(t)
	call := func(key string) (int, error) {
		req := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.listen+"/v1/levels", nil))
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		return resp.StatusCode, nil
	}
	if code, err := call(""); err != nil || code != http.StatusUnauthorized {
		t.Errorf("without a key: %d %v", code, err)
	}
	out := must[string](t)(w.command("docker", "run", "--rm", "--network", "none", "tierflow-api:"+w.version, "new-key",
		"--name", "another", "--scopes", "read"))
	key, line, _ := strings.Cut(out, "\n")
	// An editor replaces the file: a new file takes the name.
	file := filepath.Join(w.clone, "secrets/api-keys/keys")
	old := must[[]byte](t)(os.ReadFile(file))
	ok(t, os.WriteFile(file+".new", fmt.Appendf(nil, "%s%s\n", old, line), 0o644))
	ok(t, os.Rename(file+".new", file))
	defer os.WriteFile(file, old, 0o644)
	testserver.Eventually(t, "the new key is taken", patience, func() error {
		if code, err := call(key); err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %v", code, err)
		}
		return nil
	})
}

func TestRedisRefusesAServiceWhatIsNotItsOwn(t *testing.T) {
	w.begin(t)
	ctx := t.Context()
	if w.refusals() != 0 { // by the tests before this one, which ends with an empty list
		t.Error("the services were refused what they need")
	}
	admin := w.Redis.(*redis.Client)
	as := func(service string) *redis.Client {
		o := *admin.Options()
		url := must[string](t)(w.secret("redis-url-" + service))
		u := must[*redis.Options](t)(redis.ParseURL(url))
		o.Username, o.Password = u.Username, u.Password
		c := redis.NewClient(&o)
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := map[string][][]any{
		"api": {{"SET", "other", "1"}, {"GET", "other"}, {"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"KEYS", "*"}, {"ACL", "LIST"},
			{"SET", "tierflow:unreachable", "1"}, {"DEL", "tierflow:progress:1"}, {"XGROUP", "DESTROY", "tierflow:views", "relocator"},
			{"XREADGROUP", "GROUP", "relocator", "x", "STREAMS", "tierflow:views", ">"}, {"SHUTDOWN"},
			{"EVAL", "return redis.call('FLUSHALL')", "0"}, {"EVAL", "return redis.call('SET', 'other', '1')", "0"}},
		"relocator": {{"SET", "other", "1"}, {"SET", "tierflow:paused", "1"}, {"FLUSHALL"}, {"CONFIG", "SET", "maxmemory", "1"},
			{"XGROUP", "DESTROY", "tierflow:views", "relocator"}, {"EVAL", "return redis.call('DEL', 'tierflow:paused')", "0"}},
		"committer": {{"SET", "other", "1"}, {"SET", "tierflow:paused", "1"}, {"HSET", "tierflow:progress:1", "a", "b"}, {"FLUSHDB"},
			{"XGROUP", "DESTROY", "tierflow:relocated", "committer"}, {"MONITOR"}, {"REPLICAOF", "NO", "ONE"}},
	}
	for service, commands := range refused {
		c := as(service)
		if err := c.Ping(ctx).Err(); err != nil {
			t.Fatalf("%s cannot even log in: %v", service, err)
		}
		for _, command := range commands {
			if err := c.Do(ctx, command...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "ACL failure") {
				t.Errorf("%s: %v: %v", service, command, err)
			}
		}
	}
	nobody := *admin.Options()
	nobody.Username, nobody.Password = "", ""
	c := redis.NewClient(&nobody)
	defer c.Close()
	if err := c.Ping(ctx).Err(); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without a user: %v", err)
	}
	ok(t, admin.Do(ctx, "ACL", "LOG", "RESET").Err()) // refusals reads this log at the end
}

func TestMySQLRefusesAServiceWhatIsNotItsOwn(t *testing.T) {
	w.begin(t)
	owner := must[*mysql.Config](t)(mysql.ParseDSN(w.dsn))
	refused := map[string][]string{
		"api": {"UPDATE contents SET content_level = 'gold'", "UPDATE contents SET generation = 1", "DELETE FROM update_history",
			"UPDATE `level` SET tier_id = 'x'", "DROP TABLE contents", "CREATE TABLE x (i INT)", "SELECT * FROM mysql.user",
			"INSERT INTO tierflow_schema (version_id, is_applied) VALUES (99, TRUE)", "CREATE USER x", "SET GLOBAL max_connections = 1"},
		"relocator": {"UPDATE contents SET content_level = 'gold'", "DELETE FROM contents", "INSERT INTO contents VALUES ()",
			"UPDATE `level` SET path = '/'", "UPDATE `level` SET tier_id = 'x'", "INSERT INTO update_history VALUES ()", "DROP TABLE contents"},
		"committer": {"DELETE FROM contents", "INSERT INTO contents VALUES ()", "UPDATE contents SET filename = 'x'",
			"UPDATE contents SET pinned_level = NULL", "UPDATE `level` SET path = '/'", "DELETE FROM update_history",
			"ALTER TABLE contents ADD x INT", "GRANT ALL ON *.* TO committer"},
	}
	for service, statements := range refused {
		cfg := owner.Clone()
		own := must[*mysql.Config](t)(mysql.ParseDSN(must[string](t)(w.secret("mysql-dsn-" + service))))
		cfg.User, cfg.Passwd = own.User, own.Passwd
		db := must[*sql.DB](t)(sql.Open("mysql", cfg.FormatDSN()))
		defer db.Close()
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM contents").Scan(&n); err != nil {
			t.Fatalf("%s cannot even read: %v", service, err)
		}
		for _, statement := range statements {
			_, err := db.ExecContext(t.Context(), statement)
			var e *mysql.MySQLError
			if !errors.As(err, &e) || !slices.Contains([]uint16{1044, 1045, 1142, 1143, 1227, 1410}, e.Number) {
				t.Errorf("%s: %s: %v", service, statement, err)
			}
		}
	}
}
