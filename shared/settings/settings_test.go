package settings_test

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/settings"
)

// The tests must not depend on variables that the machine has set.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "TIERFLOW_") {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// one runs a check and returns its problem, "" for none.
func one(check func(p *settings.Problems)) string {
	var p settings.Problems
	check(&p)
	if err := p.Err(); err != nil {
		return err.Error()
	}
	return ""
}

func TestADurationHasGosFormAndAMinimum(t *testing.T) {
	for in, want := range map[string]time.Duration{"30s": 30 * time.Second, "1h30m": 90 * time.Minute, "1s": time.Second, "1500ms": 1500 * time.Millisecond} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Duration("X", in, time.Second); got != want {
				t.Errorf("%q is %s", in, got)
			}
		}); problem != "" {
			t.Errorf("%q: %s", in, problem)
		}
	}
	if problem := one(func(p *settings.Problems) { p.Duration("X", "0", 0) }); problem != "" {
		t.Error(problem)
	}
	for _, in := range []string{"", "30", "s", "30 s", "-1s", "0", "999ms", "1e3s", "99999999999h"} {
		problem := one(func(p *settings.Problems) {
			if got := p.Duration("X", in, time.Second); got != 0 {
				t.Errorf("%q is %s", in, got)
			}
		})
		if !strings.Contains(problem, "X: ") || !strings.Contains(problem, in) {
			t.Errorf("%q: %q", in, problem)
		}
	}
}

func TestANumberIsWholeAndWithinItsRange(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "8": 8, "10": 10} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Int("X", in, 1, 10); got != want {
				t.Errorf("%q is %d", in, got)
			}
		}); problem != "" {
			t.Errorf("%q: %s", in, problem)
		}
	}
	for _, in := range []string{"", "0", "11", "-1", "1.5", "x", "9223372036854775808"} {
		if problem := one(func(p *settings.Problems) { p.Int("X", in, 1, 10) }); !strings.Contains(problem, "X: ") || !strings.Contains(problem, "from 1 to 10") {
			t.Errorf("%q: %q", in, problem)
		}
	}
	if problem := one(func(p *settings.Problems) { p.Int("X", "0", 1, math.MaxInt64) }); !strings.Contains(problem, "1 or more") {
		t.Error(problem)
	}
	if problem := one(func(p *settings.Problems) { p.Int("X", "9223372036854775807", 1, math.MaxInt64) }); problem != "" {
		t.Error(problem)
	}
}

func TestARateIsBytesASecondWithOrWithoutAUnit(t *testing.T) {
	for in, want := range map[string]int64{
		"": 0, "0": 0, "0B": 0, "1": 1, "100B": 100, "5K": 5000, "5KB": 5000, "5Ki": 5120, "5KiB": 5120, "100MiB": 100 << 20, "100M": 1e8, "2G": 2e9, "2GiB": 2 << 30,
		"9223372036854775807": math.MaxInt64,
	} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Rate("X", in); got != want {
				t.Errorf("%q is %d, not %d", in, got, want)
			}
		}); problem != "" {
			t.Errorf("%q: %s", in, problem)
		}
	}
	for _, in := range []string{"x", "B", "MiB", "-1", "1.5M", "1m", "1T", "1 M", "M1", "9223372036854775807K", "9223372036854775808"} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Rate("X", in); got != 0 {
				t.Errorf("%q is %d", in, got)
			}
		}); !strings.Contains(problem, "X: ") || !strings.Contains(problem, in) {
			t.Errorf("%q: %q", in, problem)
		}
	}
}

func TestAnAddressHasAHostAndAPort(t *testing.T) {
	for _, in := range []string{"127.0.0.1:5000", ":5000", "[::1]:5000", "localhost:0", "0.0.0.0:65535"} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Address("X", in); got != in {
				t.Errorf("%q is %q", in, got)
			}
		}); problem != "" {
			t.Errorf("%q: %s", in, problem)
		}
	}
	for _, in := range []string{"", "5000", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "::1:5000", "http://x:1"} {
		if problem := one(func(p *settings.Problems) {
			if got := p.Address("X", in); got != "" {
				t.Errorf("%q is %q", in, got)
			}
		}); !strings.Contains(problem, "X: ") {
			t.Errorf("%q: %q", in, problem)
		}
	}
}

func TestAURLIsHTTPOrHTTPSAndHasAHost(t *testing.T) {
	for _, in := range []string{"http://127.0.0.1:5000", "https://tierflow.example/sub", "http://[::1]:5000"} {
		if problem := one(func(p *settings.Problems) {
			if got := p.URL("X", in); got.String() != in {
				t.Errorf("%q is %q", in, got)
			}
		}); problem != "" {
			t.Errorf("%q: %s", in, problem)
		}
	}
	for _, in := range []string{"", "127.0.0.1:5000", "http://", "ftp://x", "http://a b", "/v1"} {
		if problem := one(func(p *settings.Problems) {
			if got := p.URL("X", in); got != nil {
				t.Errorf("%q is %q", in, got)
			}
		}); !strings.Contains(problem, "X: ") || !strings.Contains(problem, strconv.Quote(in)) {
			t.Errorf("%q: %q", in, problem)
		}
	}
}

func TestAChoiceIsOneOfTheAllowedWords(t *testing.T) {
	choices := []string{"readback", "stream"}
	if problem := one(func(p *settings.Problems) {
		if got := p.OneOf("X", "stream", choices); got != "stream" {
			t.Errorf("%q", got)
		}
	}); problem != "" {
		t.Error(problem)
	}
	for _, in := range []string{"", "Stream", "none"} {
		if problem := one(func(p *settings.Problems) { p.OneOf("X", in, choices) }); !strings.Contains(problem, "none of readback, stream") {
			t.Errorf("%q: %q", in, problem)
		}
	}
}

func TestASecretMayLieInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for text, want := range map[string]string{"s3cret": "s3cret", "s3cret\n": "s3cret", "s3cret\r\n": "s3cret", " s p \n": " s p ", "": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if problem := one(func(p *settings.Problems) {
			if got := p.Secret("X", "the default", file); got != want {
				t.Errorf("%q is %q", text, got)
			}
		}); problem != "" {
			t.Errorf("%q: %s", text, problem)
		}
	}
	if problem := one(func(p *settings.Problems) {
		if got := p.Secret("X", "given", ""); got != "given" {
			t.Errorf("%q", got)
		}
	}); problem != "" {
		t.Error(problem)
	}
	if problem := one(func(p *settings.Problems) {
		if got := p.Secret("X", "the default", file+"x"); got != "" {
			t.Errorf("%q", got)
		}
	}); !strings.Contains(problem, "X_FILE: ") || !strings.Contains(problem, file+"x") {
		t.Error(problem)
	}
}

func TestNoProblemIsNoError(t *testing.T) {
	var p settings.Problems
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}

// program is a command line as the services have it.
type program struct {
	settings.Common
	settings.Worker

	Serve   struct{} `cmd:"" default:"1"`
	Version struct{} `cmd:""`
	Init    struct {
		Root string `arg:""`
	} `cmd:""`
}

func parse(t *testing.T, args ...string) (program, string) {
	t.Helper()
	var c program
	verb, err := settings.Parse("x", "a program", &c, args)
	if err != nil {
		t.Fatal(err)
	}
	return c, verb
}

func TestTheDefaultsAreThoseOfTheContract(t *testing.T) {
	c, verb := parse(t)
	var p settings.Problems
	got := c.Common.Check(&p)
	if err := p.Err(); err != nil || verb != "serve" {
		t.Fatal(verb, err)
	}
	want := settings.CommonValues{
		RedisURL: "redis://127.0.0.1:6379/0", RedisPrefix: "tierflow:", MySQLDSN: "tierflow:tierflow@tcp(127.0.0.1:3306)/tierflow",
		Partitions: 1, MinIdle: 30 * time.Second, StateTTL: 24 * time.Hour, Drain: 20 * time.Second, LogLevel: "info", LogFormat: "json",
	}
	if got != want {
		t.Errorf("%+v", got)
	}
}

func TestAFlagOverridesTheEnvironmentAndBothOverrideTheDefault(t *testing.T) {
	t.Setenv("TIERFLOW_DRAIN", "7s")
	t.Setenv("TIERFLOW_MIN_IDLE", "8s")
	t.Setenv("TIERFLOW_MAX_BACKLOG", "of another program")
	c, verb := parse(t, "version", "--drain", "9s")
	var p settings.Problems
	if v := c.Common.Check(&p); p.Err() != nil || v.Drain != 9*time.Second || v.MinIdle != 8*time.Second || verb != "version" {
		t.Errorf("%+v, %v, %s", v, p.Err(), verb)
	}
	if _, verb := parse(t, "init", "/srv"); verb != "init" {
		t.Errorf("verb %q", verb)
	}
}

func TestWrongArgumentsAreAnError(t *testing.T) {
	for _, args := range [][]string{{"nope"}, {"--nope"}, {"--drain"}, {"init"}} {
		var c program
		if verb, err := settings.Parse("x", "a program", &c, args); err == nil || !strings.Contains(err.Error(), "x --help") {
			t.Errorf("%v: %q, %v", args, verb, err)
		}
	}
}

func TestAnErrorNamesEveryWrongSetting(t *testing.T) {
	for name, value := range map[string]string{
		"TIERFLOW_REDIS_URL_FILE": "/does/not/exist/redis", "TIERFLOW_MYSQL_DSN_FILE": "/does/not/exist/mysql", "TIERFLOW_REDIS_PREFIX": "a{b}",
		"TIERFLOW_MIN_IDLE": "1ms", "TIERFLOW_STATE_TTL": "59s", "TIERFLOW_DRAIN": "-1s", "TIERFLOW_PARTITIONS": "1025", "TIERFLOW_LOG_LEVEL": "loud",
		"TIERFLOW_LOG_FORMAT": "xml", "TIERFLOW_WORKER_ID": "a,b",
	} {
		t.Setenv(name, value)
	}
	c, _ := parse(t)
	var p settings.Problems
	c.Common.Check(&p)
	c.Worker.Check(&p)
	err := p.Err()
	if err == nil {
		t.Fatal("taken")
	}
	for _, name := range []string{
		"TIERFLOW_REDIS_URL_FILE", "TIERFLOW_MYSQL_DSN_FILE", "TIERFLOW_REDIS_PREFIX", "TIERFLOW_MIN_IDLE", "TIERFLOW_STATE_TTL", "TIERFLOW_DRAIN",
		"TIERFLOW_PARTITIONS", "TIERFLOW_LOG_LEVEL", "TIERFLOW_LOG_FORMAT", "TIERFLOW_WORKER_ID",
	} {
		if strings.Count(err.Error(), "\n  "+name+": ") != 1 {
			t.Errorf("%s is not named once:\n%v", name, err)
		}
	}
}

func TestAClusterNeedsPartitions(t *testing.T) {
	for _, scheme := range []string{"redis+cluster", "rediss+cluster"} {
		c, _ := parse(t, "--redis-url", scheme+"://h:1,i:2")
		if problem := one(func(p *settings.Problems) { c.Common.Check(p) }); !strings.Contains(problem, "TIERFLOW_PARTITIONS: Redis Cluster") {
			t.Errorf("%q", problem)
		}
		c.Partitions = "2"
		if problem := one(func(p *settings.Problems) { c.Common.Check(p) }); problem != "" {
			t.Error(problem)
		}
	}
}

func TestSecretsOfAllServicesMayLieInFiles(t *testing.T) {
	dir := t.TempDir()
	for name, value := range map[string]string{"redis": "rediss://:pw@h/1\n", "mysql": "u:p@tcp(h)/d\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := parse(t, "--redis-url-file", filepath.Join(dir, "redis"), "--mysql-dsn-file", filepath.Join(dir, "mysql"))
	var p settings.Problems
	if v := c.Common.Check(&p); p.Err() != nil || v.RedisURL != "rediss://:pw@h/1" || v.MySQLDSN != "u:p@tcp(h)/d" {
		t.Errorf("%+v, %v", v, p.Err())
	}
}

func TestAWorkerIDIsPrintableAndHasADefault(t *testing.T) {
	check := func(id string) (got string, problem string) {
		problem = one(func(p *settings.Problems) { got = settings.Worker{WorkerID: id}.Check(p) })
		return got, problem
	}
	for _, id := range []string{"w", "host-1.example:7/x", strings.Repeat("w", 128)} {
		if got, problem := check(id); got != id || problem != "" {
			t.Errorf("%q: %q, %s", id, got, problem)
		}
	}
	for _, id := range []string{" ", "a b", "a,b", `a"b`, `a\b`, "é", "a\n", "a\x7f", strings.Repeat("w", 129)} {
		if _, problem := check(id); !strings.Contains(problem, "TIERFLOW_WORKER_ID: ") {
			t.Errorf("%q: %q", id, problem)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got, problem := check(""); !strings.HasPrefix(got, host+"-") || problem != "" {
		t.Errorf("the default is %q, %s", got, problem)
	}
}

func TestAVariableThatIsSetButEmptyCountsAsNotSet(t *testing.T) {
	t.Setenv("TIERFLOW_MIN_IDLE", "")
	var cli struct {
		settings.Common
		Serve struct{} `cmd:"" default:"1"`
	}
	if _, err := settings.Parse("p", "", &cli, nil); err != nil {
		t.Fatal(err)
	}
	if cli.MinIdle != "30s" {
		t.Errorf("it is %q, not the default", cli.MinIdle)
	}
}
