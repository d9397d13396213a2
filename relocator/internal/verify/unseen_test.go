package verify_test

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/shared/fault"
)

// The rows of gold, and what else it has, cannot be compared. Everything else is.
func (w *world) withoutGold(why string) {
	w.t.Helper()
	w.row(1, "gold", "a")
	w.row(2, "bronze", "gone")
	w.row(3, "bronze", "there")
	w.file("bronze", "there", "3")
	w.row(4, "gold", "perhaps-the-last")
	w.file("silver", "perhaps-the-last", "4")
	w.file("silver", "nobody", "?")
	found, actions, err := w.run(true, true)
	if err != nil {
		w.t.Fatal(err)
	}
	want := map[string]string{
		"missing 2 bronze gone":               "left: put the file there, or correct the row; gold was not looked at, and may have it as well",
		"duplicate 4 silver perhaps-the-last": "left: it may be the last copy; verify again when all tiers are there",
		"orphaned 0 silver nobody":            "left: register it, or delete it",
	}
	got := map[string]string{}
	for i, f := range found {
		got[f] = actions[i]
	}
	if !maps.Equal(got, want) {
		w.t.Errorf("findings\n got %q\nwant %q", got, want)
	}
	if u := w.summary.Unseen; len(u) != 1 || u[0].Level != "gold" || !strings.Contains(u[0].Why, why) {
		w.t.Errorf("not looked at: %+v, want gold because of %q", u, why)
	}
	if n := w.rdb.XLen(w.t.Context(), w.store.Keys().Committed()).Val(); n != 0 {
		w.t.Errorf("%d copies are to be removed", n)
	}
}

func TestATierThatIsAwayIsNamedAndTheOthersAreCompared(t *testing.T) {
	w := newWorld(t)
	if err := os.Rename(w.path("gold", ""), w.path("elsewhere", "")); err != nil {
		t.Fatal(err)
	}
	w.withoutGold("make the folder or mount the disk")
}

func TestATierThatHangsIsNamedAndTheOthersAreCompared(t *testing.T) {
	for _, at := range []string{"/gold", "/gold/a", "/gold/.tierflow/tmp"} { // as it is opened, looked at, and listed
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			hang := make(chan struct{})
			t.Cleanup(func() { close(hang) })
			w.hangs = time.Second
			w.fs = fsys.FS{Hook: func(step fsys.Step, path string) error {
				opened := step == fsys.OpenTier || step == fsys.ReadIdentity
				if path == w.root+at && (!opened || at == "/gold") {
					<-hang
				}
				return nil
			}}
			if at == "/gold/.tierflow/tmp" { // gold was looked at before
				w.row(1, "gold", "a")
				w.file("gold", "a", "1")
				found, _, err := w.run(false, false)
				if u := w.summary.Unseen; err != nil || len(found) != 0 || len(u) != 1 || u[0].Level != "gold" {
					t.Errorf("%q, %v, %+v", found, err, u)
				}
				return
			}
			w.withoutGold("it has not answered for 1s")
		})
	}
}

func TestATierThatFailsIsNamedAndTheOthersAreCompared(t *testing.T) {
	w := newWorld(t)
	w.fs = fsys.FS{Hook: func(step fsys.Step, path string) error {
		if step == fsys.ReadDigest && strings.HasPrefix(path, w.root+"/gold/") {
			return errors.New("input/output error")
		}
		return nil
	}}
	w.withoutGold("input/output error")
}

func TestVerifyFailsWhenNoTierCanBeLookedAt(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"bronze", "silver", "gold"} {
		if err := os.RemoveAll(w.path(name, "")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := w.run(false, false); !fault.Is(err, fault.TierRefused) || len(w.summary.Unseen) != 3 {
		t.Errorf("error %v, %+v", err, w.summary)
	}
}

func TestNamesThatLookAlikeArePrintedDifferently(t *testing.T) {
	lines := map[string]string{}
	for _, name := range []string{
		"caf\u00e9", "cafe\u0301", // NFC and NFD
		"name", "name ", "name\u00a0", "na\u200bme", "name\n",
		"cop", "\u0441\u043e\u0440", // Latin and Cyrillic
		"Kelvin", "\u212aelvin", "Movie", "movie",
	} {
		line := verify.Finding{Kind: verify.Missing, ID: 1, Level: "bronze", Path: name, Detail: "there is no " + name}.String()
		if strings.Count(line, "\n") > 0 || strings.Count(line, "\t") != 4 {
			t.Errorf("%+q breaks its line: %q", name, line)
		}
		lines[name] = line
	}
	for name, want := range map[string]string{
		"cafe\u0301":         `"cafe\u0301"	there is no cafe\u0301; in ASCII its name is "cafe\u0301"`,
		"caf\u00e9":          `"café"	there is no café; in ASCII its name is "caf\u00e9"`,
		"\u0441\u043e\u0440": `"сор"	there is no сор; in ASCII its name is "\u0441\u043e\u0440"`,
		"name ":              `"name "	there is no name `,
		"name\n":             `"name\n"	there is no name\n`,
		"na\u200bme":         `"na\u200bme"	there is no na\u200bme`,
	} {
		if _, got, _ := strings.Cut(lines[name], "bronze\t"); got != want {
			t.Errorf("%+q is printed as\n%s\nwant\n%s", name, got, want)
		}
	}
}
