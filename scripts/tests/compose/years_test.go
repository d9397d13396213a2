package compose_test

import (
	"archive/tar"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// builds has our images: the Dockerfile and the stage of each.
var builds = map[string][2]string{
	"api": {"api/Dockerfile", "api"}, "counter": {"api/Dockerfile", "counter"}, "demo": {"api/Dockerfile", "demo"},
	"relocator": {"relocator/Dockerfile", ""}, "committer": {"committer/Dockerfile", ""},
}

func TestBuildingElsewhereGivesTheSameImages(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles everything once more")
	}
	w.begin(t)
	must[string](t)(w.compose("--profile", "edge", "--profile", "demo", "build", "--quiet", "counter", "demo"))
	dir := filepath.Join(t.TempDir(), "elsewhere")
	ok(t, copyCheckout(dir))
	for service, build := range builds {
		// The same Dockerfile with another folder of sources and a cache in which nothing is compiled yet.
		b := must[[]byte](t)(os.ReadFile(filepath.Join(dir, build[0])))
		file := filepath.Join(t.TempDir(), "Dockerfile")
		ok(t, os.WriteFile(file, []byte(replace(t, string(b), "WORKDIR /src", "WORKDIR /home/somebody/tierflow",
			"target=/root/.cache/go-build", "id="+w.version+",target=/root/.cache/go-build")), 0o644))
		image := "tierflow-" + service + ":" + w.version
		again := image + "-again"
		args := []string{"build", "--quiet", "--tag", again, "--file", file, "--build-arg", "VERSION=" + w.version, "--build-arg", "REVISION=unknown"}
		if build[1] != "" {
			args = append(args, "--target", build[1])
		}
		must[string](t)(w.command("docker", append(args, dir)...))
		first, second := w.files(t, image), w.files(t, again)
		if len(first) < 2 || !slices.Equal(first, second) {
			t.Errorf("%s has\n%s\nand built elsewhere\n%s", image, strings.Join(first, "\n"), strings.Join(second, "\n"))
		}
	}
}

// files returns the names, owners, modes and bytes of the files in an image, but not their times.
func (w *world) files(t *testing.T, image string) (list []string) {
	t.Helper()
	id := must[string](t)(w.command("docker", "create", "--network", "none", image))
	defer func() { must[string](t)(w.command("docker", "rm", id)) }()
	archive := filepath.Join(t.TempDir(), "image.tar")
	must[string](t)(w.command("docker", "export", "--output", archive, id))
	f := must[*os.File](t)(os.Open(archive))
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return list
		}
		ok(t, err)
		sum := sha256.New()
		must[int64](t)(io.Copy(sum, r))
		list = append(list, fmt.Sprintf("%s %c %o %d:%d %s %x", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, sum.Sum(nil)))
	}
}

var earlierCommit = flag.String("earlier", "", "the commit of an earlier version, to be brought up to date; empty: this one, under another name")

// earlier makes a clone of an earlier version.
func earlier(t *testing.T) func(to string) error {
	if *earlierCommit == "" {
		return copyCheckout
	}
	root := must[string](t)(stack.Root())
	return func(to string) error {
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		archive := exec.Command("bash", "-c", `set -o pipefail; git -C "$0" archive "$1" | tar -x -C "$2"`, root, *earlierCommit, to)
		if out, err := archive.CombinedOutput(); err != nil {
			return fmt.Errorf("git archive: %w: %s", err, out)
		}
		return nil
	}
}

func TestAnEarlierVersionIsBroughtUpToDateWhileViewsComeIn(t *testing.T) {
	var u world
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(u.logs())
		}
		ok(t, u.down())
	})
	ok(t, u.up(earlier(t)))
	tr := u.traffic(t, u.add(t, "bronze", 40, sampleSize))
	more(t, "accepted", &tr.accepted, 100)
	was := u.inspect(t, u.containers(t, "relocator")[0], "{{.Id}}")

	// git pull
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(u.clone)) {
		if e.Name() != ".env" && e.Name() != "secrets" {
			ok(t, os.RemoveAll(filepath.Join(u.clone, e.Name())))
		}
	}
	ok(t, copyCheckout(u.clone))
	must[string](t)(u.commandWith([]string{"STACK_VERSION=" + u.version + "-next"}, "./scripts/up"))
	for _, service := range []string{"api", "relocator", "committer"} {
		image := u.inspect(t, u.containers(t, service)[0], "{{.Config.Image}}")
		if !strings.HasSuffix(image, "-next") {
			t.Errorf("%s still runs %s", service, image)
		}
	}
	if is := u.inspect(t, u.containers(t, "relocator")[0], "{{.Id}}"); is == was {
		t.Error("the relocator is the same container as before")
	}
	more(t, "accepted", &tr.accepted, 50)
	tr.finish(t, &u)
	if u.refusals() != 0 {
		t.Error("Redis refused the new version something")
	}
}

func TestWhatANewVersionMayDoInRedisCountsAfterUpWithoutARestart(t *testing.T) {
	w.begin(t)
	before := w.containers(t, "redis")[0]
	users := filepath.Join(w.clone, "compose/redis/users.acl")
	text := must[[]byte](t)(os.ReadFile(users))
	defer func() { ok(t, os.WriteFile(users, text, 0o644)) }()
	ok(t, os.WriteFile(users, []byte(strings.Replace(string(text), "  +eval ", "  +dbsize +eval ", 1)), 0o644))
	must[string](t)(w.command("./scripts/up"))
	if now := w.containers(t, "redis")[0]; now != before {
		t.Error("Redis runs in another container")
	}
	if may, err := w.Redis.Do(t.Context(), "ACL", "DRYRUN", "api", "DBSIZE").Text(); may != "OK" {
		t.Errorf("the api may not: %s (%v)", may, err)
	}
}

// commands returns the commands of a section of docs/compose.md, from its first block of code.
func commands(t *testing.T, section string) string {
	t.Helper()
	b := must[[]byte](t)(os.ReadFile(filepath.Join(w.clone, "docs/compose.md")))
	_, text, found := strings.Cut(string(b), "\n"+section+"\n")
	_, text, block := strings.Cut(text, "\n```\n")
	text, _, end := strings.Cut(text, "\n```\n")
	if !found || !block || !end {
		t.Fatalf("docs/compose.md has no commands under %q", section)
	}
	return text
}

// replace changes what differs between this test and the docs. Each text to replace must be there.
func replace(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

func TestATierMovesToAnotherDiskWhileViewsComeIn(t *testing.T) {
	w.begin(t)
	disk := filepath.Join(w.dir, "disk")
	ok(t, os.Mkdir(disk, 0o755))
	text := replace(t, commands(t, "### Moving a tier to another disk"),
		"$(docker volume inspect -f '{{.Mountpoint}}' tierflow_tiers)", w.tiers(), "/mnt/nvme/gold", disk)
	const restart = "\ndocker compose up -d --wait\n"
	before, after, found := strings.Cut(text, restart)
	if !found {
		t.Fatalf("nothing is started again in\n%s", text)
	}
	override := filepath.Join(w.clone, "docker-compose.override.yml")
	env := w.env
	w.also(t, "docker-compose.override.yml") // Compose reads this file by itself where no setting names files
	run := func(script string) {
		t.Helper()
		if out, err := w.command("bash", "-euc", "tiers="+w.tiers()+"; disk="+disk+"\n"+script); err != nil {
			t.Fatal(err, out)
		}
	}
	defer func() { // moves the tier back
		run(`docker compose stop relocator; rsync -aHAXS --delete "$disk/" "$tiers/gold/"`)
		w.env = env
		ok(t, os.Remove(override))
		w.elsewhere.Delete("gold")
		w.scale(t, 1)
		w.checkSettled(t)
		ok(t, os.RemoveAll(disk))
	}()

	ids := w.add(t, "bronze", 80, sampleSize)
	for _, id := range ids[:40] { // these lie on gold when the tier moves
		ok(t, w.Post(t.Context(), id, 2500))
	}
	w.checkSettled(t)
	tr := w.traffic(t, ids)
	more(t, "accepted", &tr.accepted, 100)
	run(before)
	w.elsewhere.Store("gold", disk) // both are the same now
	more(t, "accepted", &tr.accepted, 50)
	run(restart + after)
	more(t, "accepted", &tr.accepted, 100)
	tr.finish(t, &w)
	left := must[[]os.DirEntry](t)(os.ReadDir(filepath.Join(w.tiers(), "gold")))
	there := must[[]os.DirEntry](t)(os.ReadDir(disk))
	if len(left) > 0 || len(there) < 2 {
		t.Errorf("%d names are left in the old place, and %d are in the new one", len(left), len(there))
	}

	// Without its disk the tier is refused. It does not count as an empty tier.
	w.env = env
	if out, err := w.compose("run", "--rm", "--no-deps", "-T", "tiers"); err == nil {
		t.Errorf("the tier without its disk was accepted: %s", out)
	}
}

// The commands are those in docs/compose.md, with the paths of this test.
func TestABackupBringsEverythingBack(t *testing.T) {
	w.begin(t)
	for _, id := range w.add(t, "bronze", 20, sampleSize) {
		ok(t, w.Post(t.Context(), id, 1500))
	}
	w.checkSettled(t)
	backup := t.TempDir()
	shell := func(command string) {
		t.Helper()
		must[string](t)(w.commandWith([]string{"backup=" + backup, "tiers=" + w.tiers()}, "bash", "-euc", command))
	}
	shell(`docker compose stop relocator committer
		docker compose exec -T mysql sh -c 'MYSQL_PWD=$(cat /run/secrets/mysql-root) mysqldump -u root --single-transaction \
			--no-tablespaces --set-gtid-purged=OFF tierflow' > "$backup/tierflow.sql"
		cp -a "$tiers" "$backup/tiers"`)
	shell(`docker compose down --volumes`)
	for _, level := range []string{"bronze", "silver", "gold"} {
		ok(t, os.RemoveAll(filepath.Join(w.tiers(), level)))
	}
	shell(`docker compose up -d --wait mysql
		docker compose exec -T mysql sh -c 'MYSQL_PWD=$(cat /run/secrets/mysql-root) mysql -u root tierflow' < "$backup/tierflow.sql"
		docker compose up --no-start
		cp -a "$backup/tiers/." "$tiers/"
		docker compose up -d --wait
		docker compose run --rm --no-deps -T relocator verify --digest`)
	w.checkSettled(t)
}
