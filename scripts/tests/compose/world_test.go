package compose_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

var run = flag.Bool("compose", false, "run these tests: they need a Docker engine, and root for the files in volumes")

// patience is how long a test waits for what must happen: far longer than it ever takes.
const patience = 3 * time.Minute

// world is a Tierflow in containers. It is made from a copy of this checkout as from a fresh clone, with its own project
// name, images, ports and folders. All tests but that of an upgrade use the one that TestMain makes, and each leaves it
// running and healthy.
type world struct {
	*stack.Stack
	dir     string // of all files that are written
	clone   string
	project string
	version string // also the tag of the images
	listen  string // host:port of the api
	edge    string // host:port of the web server, in the profile edge
	dsn     string // of MySQL, as owner of the tables
	env     []string
	next    item.ID // the next item's id

	elsewhere *sync.Map // the folders of levels that are not in tiers(), by level
}

var w world

func TestMain(m *testing.M) {
	flag.Parse()
	if !*run {
		fmt.Println("these tests are run by ./scripts/test-compose")
		return
	}
	os.Exit(func() (code int) {
		defer func() {
			if err := w.down(); err != nil {
				fmt.Println("taking everything down:", err)
				code = 1
			}
		}()
		if err := w.up(copyCheckout); err != nil {
			fmt.Println(err)
			return 1
		}
		if code = m.Run(); code == 0 {
			code = w.refusals()
		}
		return code
	}())
}

// overlay is what the tests need in addition: servers that they can reach, a folder for the tiers' volume so that they see
// its files, and frequent health checks. It works with every earlier version as well.
const overlay = `
services:
  mysql: {ports: ["127.0.0.1:%d:3306"], networks: [test], healthcheck: {interval: 1s}}
  redis: {ports: ["127.0.0.1:%d:6379"], networks: [test], healthcheck: {interval: 1s}}
  api: {healthcheck: {test: ["CMD", "/api", "healthcheck"], interval: 1s, timeout: 5s, retries: 5}}
  relocator: {healthcheck: {test: ["CMD", "/relocator", "healthcheck"], interval: 1s, timeout: 5s, retries: 5}}
  committer: {healthcheck: {test: ["CMD", "/committer", "healthcheck"], interval: 1s, timeout: 5s, retries: 5}}
networks: {test: {}}
volumes: {tiers: {driver_opts: {type: none, o: bind, device: %s}}}
`

// profiles is the overlay for the services of profiles.
const profiles = `
services:
  counter: {healthcheck: {test: ["CMD", "/counter", "healthcheck"], interval: 1s, timeout: 5s, retries: 5}}
  edge: {healthcheck: &soon {interval: 1s}}
  redis-2: {healthcheck: *soon}
  redis-3: {healthcheck: *soon}
  redis-4: {healthcheck: *soon}
  redis-5: {healthcheck: *soon}
  redis-6: {healthcheck: *soon}
`

// up makes a clone and runs ./scripts/up in it.
func (w *world) up(clone func(to string) error) (err error) {
	w.elsewhere = &sync.Map{}
	if w.dir, err = os.MkdirTemp("", "tierflow-compose-"); err != nil {
		return err
	}
	if err := os.Chmod(w.dir, 0o755); err != nil {
		return err
	}
	w.project = strings.ToLower(filepath.Base(w.dir))
	w.version = "test-" + strings.TrimPrefix(w.project, "tierflow-compose-")
	w.clone = filepath.Join(w.dir, "clone")
	if err := clone(w.clone); err != nil {
		return err
	}
	var ports [4]int
	for i := range ports {
		if ports[i], err = localserver.FreePort(); err != nil {
			return err
		}
	}
	w.listen = fmt.Sprintf("127.0.0.1:%d", ports[0])
	w.edge = fmt.Sprintf("127.0.0.1:%d", ports[3])
	files := []string{"docker-compose.yml"}
	for name, text := range map[string]string{"overlay.yml": fmt.Sprintf(overlay, ports[1], ports[2], w.tiers()), "profiles.yml": profiles} {
		file := filepath.Join(w.dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		if name == "overlay.yml" || w.has("counter") {
			files = append(files, file)
		}
	}
	if err := os.Mkdir(w.tiers(), 0o755); err != nil {
		return err
	}
	w.env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "STACK_") || strings.HasPrefix(v, "TIERFLOW_") || strings.HasPrefix(v, "COMPOSE_")
	})
	w.env = append(w.env, "COMPOSE_PROJECT_NAME="+w.project, "COMPOSE_FILE="+strings.Join(files, ":"), "COMPOSE_PROGRESS=quiet",
		"STACK_VERSION="+w.version, "STACK_LISTEN="+w.listen, "STACK_EDGE_LISTEN="+w.edge,
		"TIERFLOW_MIN_IDLE=3s", "TIERFLOW_RELEASE_GRACE="+grace.String(), "TIERFLOW_VIEW_WINDOW="+viewWindow.String(),
		"TIERFLOW_VIEW_INTERVAL=500ms")
	start := time.Now()
	out, err := w.command("./scripts/up")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, w.logs())
	}
	fmt.Printf("./scripts/up took %.0f s:\n%s\n", time.Since(start).Seconds(), out)

	redis, err := w.secret("redis-operator")
	if err != nil {
		return err
	}
	mysql, err := w.secret("mysql-owner")
	if err != nil {
		return err
	}
	key, err := w.secret("api-key-admin")
	if err != nil {
		return err
	}
	w.dsn = fmt.Sprintf("tierflow:%s@tcp(127.0.0.1:%d)/tierflow", mysql, ports[1])
	w.Stack, err = stack.Attach(stack.AttachOptions{
		API: w.listen, APIKey: key,
		RedisURL: fmt.Sprintf("redis://operator:%s@127.0.0.1:%d/0", redis, ports[2]),
		MySQLDSN: w.dsn,
		Local:    w.local,
	})
	return err
}

// viewWindow is how long a view counts.
const viewWindow = 24 * time.Second

// grace is how long an old copy stays after the commit: a reader has as long between a look-up and its open.
const grace = 2 * time.Second

func (w *world) tiers() string { return filepath.Join(w.dir, "tiers") }

// has reports whether the clone's docker-compose.yml has a service.
func (w *world) has(service string) bool {
	b, err := os.ReadFile(filepath.Join(w.clone, "docker-compose.yml"))
	return err == nil && strings.Contains(string(b), "\n  "+service+":\n")
}

// local returns where a path in a container's tiers lies on this machine.
func (w *world) local(path string) string {
	level, rest, _ := strings.Cut(strings.TrimPrefix(path, "/srv/tierflow/"), "/")
	if at, ok := w.elsewhere.Load(level); ok {
		return filepath.Join(at.(string), rest)
	}
	return filepath.Join(w.tiers(), strings.TrimPrefix(path, "/srv/tierflow/"))
}

// down removes everything that up and the tests have made.
func (w *world) down() error {
	if w.Stack != nil {
		w.Close()
	}
	if w.clone != "" {
		if _, err := os.Stat(filepath.Join(w.clone, ".env")); err == nil {
			if _, err := w.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5"); err != nil {
				return err
			}
		}
		images, err := w.command("docker", "image", "ls", "--quiet", "--filter", "reference=tierflow-*:"+w.version+"*")
		if err != nil {
			return err
		}
		for _, image := range slices.Compact(strings.Fields(images)) {
			if _, err := w.command("docker", "image", "rm", "--force", image); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(w.dir)
}

// copyCheckout copies what a clone would have, and the changes that are not committed yet.
func copyCheckout(to string) error {
	root, err := stack.Root()
	if err != nil {
		return err
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for _, name := range strings.Split(strings.Trim(string(out), "\x00"), "\x00") {
		from, to := filepath.Join(root, name), filepath.Join(to, name)
		info, err := os.Stat(from)
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program in the clone and returns its output. An error contains the output too.
func (w *world) command(name string, args ...string) (string, error) {
	return w.commandWith(nil, name, args...)
}

func (w *world) commandWith(env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = w.clone
	cmd.Env = slices.Concat(w.env, env)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (w *world) compose(args ...string) (string, error) {
	return w.command("docker", append([]string{"compose"}, args...)...)
}

func (w *world) secret(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(w.clone, "secrets", name))
	return strings.TrimSpace(string(b)), err
}

func (w *world) logs() string {
	out, _ := w.compose("logs", "--tail", "15", "--no-color")
	return out
}

// must returns the result, or ends the test.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin makes sure that everything runs, with one relocator. It shows the logs where the test fails.
func (w *world) begin(t *testing.T) {
	t.Helper()
	w.scale(t, 1)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.logs())
		}
	})
}

func (w *world) scale(t *testing.T, relocators int) {
	t.Helper()
	must[string](t)(w.compose("up", "--detach", "--wait", "--no-build", "--scale", "relocator="+strconv.Itoa(relocators)))
}

// containers returns the ids of a service's containers.
func (w *world) containers(t *testing.T, service string) []string {
	t.Helper()
	ids := strings.Fields(must[string](t)(w.compose("ps", "--all", "--quiet", service)))
	if len(ids) == 0 {
		t.Fatalf("the service %s has no container", service)
	}
	return ids
}

func (w *world) inspect(t *testing.T, id, format string) string {
	t.Helper()
	return must[string](t)(w.command("docker", "inspect", "--format", format, id))
}

// waitHealthy waits until all services report that they are ready.
func (w *world) waitHealthy(t *testing.T) {
	t.Helper()
	testserver.Eventually(t, "all services are healthy", patience, func() error {
		out, err := w.compose("ps", "--all", "--format", "{{.Service}} {{.State}} {{.Health}}")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(out, "\n") {
			if service, state, _ := strings.Cut(line, " "); state != "running healthy" && !slices.Contains(jobs, service) {
				return fmt.Errorf("%s", line)
			}
		}
		return nil
	})
}

var jobs = []string{"migrate", "accounts", "tiers", "cluster"}

// add makes items of the given size on a level. The user that the relocator runs as owns their files.
func (w *world) add(t *testing.T, level string, n int, size int64) []item.ID {
	t.Helper()
	var ids []item.ID
	var samples []stack.Sample
	for range n {
		w.next++
		ids = append(ids, w.next)
		samples = append(samples, stack.Sample{ID: w.next, Level: level, Size: size, Filename: fmt.Sprintf("f%d/%s.mp4", w.next%7, w.next)})
	}
	ok(t, w.Add(t.Context(), samples...))
	ok(t, filepath.WalkDir(w.local("/srv/tierflow/"+level), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, 10001, 10001)
		}
		if os.IsNotExist(err) {
			err = nil // the item has moved
		}
		return err
	}))
	return ids
}

func (w *world) checkSettled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ok(t, w.CheckSettled(ctx))
}

// also makes Compose read one more file, until the test's end.
func (w *world) also(t *testing.T, file string) {
	t.Helper()
	env := w.env
	w.env = nil
	for _, v := range env {
		if strings.HasPrefix(v, "COMPOSE_FILE=") {
			v += ":" + file
		}
		w.env = append(w.env, v)
	}
	t.Cleanup(func() {
		w.env = env
		w.scale(t, 1)
	})
}

// crash kills a container's process without notice, as the kernel does. The restart policy brings it back.
func (w *world) crash(t *testing.T, id string) {
	t.Helper()
	w.signal(t, id, syscall.SIGKILL)
}

// pause stops every thread of a container's process, as `docker pause` does. The test does not use `docker pause` itself.
// Where that meets a health check that is just starting, the engine waits for ever for a frozen process (seen with 28.5 on
// cgroup v1). Then no command about the container returns.
func (w *world) pause(t *testing.T, id string) {
	t.Helper()
	w.signal(t, id, syscall.SIGSTOP)
}

func (w *world) unpause(t *testing.T, id string) {
	t.Helper()
	w.signal(t, id, syscall.SIGCONT)
}

// signal does not use `docker kill`. Whatever the signal, Docker takes that command as a wish to stop the container, and no
// longer applies its restart policy.
func (w *world) signal(t *testing.T, id string, s syscall.Signal) {
	t.Helper()
	pid, err := strconv.Atoi(w.inspect(t, id, "{{.State.Pid}}"))
	if err != nil || pid <= 1 {
		t.Fatalf("container %s has the process %d (%v)", id, pid, err)
	}
	ok(t, syscall.Kill(pid, s))
}

// refusals returns what Redis has refused the services in all the tests. Each entry is a command or a key that is missing
// in compose/redis/users.acl.
func (w *world) refusals() (code int) {
	log, err := w.Redis.Do(context.Background(), "ACL", "LOG").Slice()
	if err != nil || len(log) > 0 {
		fmt.Println("Redis refused the services:", log, err)
		return 1
	}
	return 0
}

// profile starts the services of a profile beside everything else, and removes them and their volumes at the test's end.
func (w *world) profile(t *testing.T, name string, services ...string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := w.compose(append([]string{"--profile", name, "logs", "--tail", "30", "--no-color"}, services...)...)
			t.Log(out)
		}
		must[string](t)(w.compose(append([]string{"--profile", name, "rm", "--stop", "--force", "--volumes"}, services...)...))
	})
	must[string](t)(w.compose(append([]string{"--profile", name, "up", "--detach", "--wait"}, services...)...))
}

// levels sets the counts at which silver and gold begin, until the test's end.
func (w *world) levels(t *testing.T, silver, gold int) {
	t.Helper()
	set := func(levels client.Levels) {
		t.Helper()
		document := must[[]byte](t)(json.Marshal(levels))
		must[client.Levels](t)(w.Client().SetLevels(context.Background(), document))
	}
	was := must[client.Levels](t)(w.Client().Levels(t.Context()))
	now := client.Levels{Levels: slices.Clone(was.Levels)}
	for i := range now.Levels {
		switch l := &now.Levels[i]; l.Level {
		case "bronze":
			l.MaxCounts = new(int64(silver) - 1)
		case "silver":
			l.MinCounts, l.MaxCounts = int64(silver), new(int64(gold)-1)
		case "gold":
			l.MinCounts = int64(gold)
		}
	}
	t.Cleanup(func() { set(was) })
	set(now)
}
