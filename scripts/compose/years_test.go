package compose_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildingTwiceGivesTheSameProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles everything a second time")
	}
	sum := func(image string) string {
		id := must[string](t)(w.command("docker", "create", "--network", "none", image))
		defer w.command("docker", "rm", id)
		file := filepath.Join(t.TempDir(), "committer")
		must[string](t)(w.command("docker", "cp", "--quiet", id+":/committer", file))
		return strings.Fields(must[string](t)(w.command("sha256sum", file)))[0]
	}
	again := "tierflow-committer:" + w.version + "-again"
	must[string](t)(w.command("docker", "build", "--quiet", "--no-cache", "--tag", again, "--file", "committer/Dockerfile",
		"--build-arg", "VERSION="+w.version, "--build-arg", "REVISION=unknown", "."))
	if a, b := sum("tierflow-committer:"+w.version), sum(again); a != b {
		t.Errorf("the program is %s, and built again %s", a, b)
	}
}

func TestANewVersionComesInWhileViewsComeIn(t *testing.T) {
	w.begin(t)
	tr := w.traffic(t, w.add(t, "bronze", 40, sampleSize))
	more(t, "accepted", &tr.accepted, 100)
	next := "STACK_VERSION=" + w.version + "-next"
	must[string](t)(w.commandWith([]string{next}, "./scripts/up"))
	for _, service := range []string{"api", "relocator", "committer"} {
		image := w.inspect(t, w.containers(t, service)[0], "{{.Config.Image}}")
		if !strings.HasSuffix(image, "-next") {
			t.Errorf("%s still runs %s", service, image)
		}
	}
	more(t, "accepted", &tr.accepted, 50)
	tr.finish(t, &w)
}

// The commands are those of docs/compose.md.
func TestABackupBringsEverythingBack(t *testing.T) {
	w.begin(t)
	for _, id := range w.add(t, "bronze", 20, sampleSize) {
		ok(t, accepted(w.Post(t.Context(), id, 1500)))
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
