package verify_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/verify"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

func digest(body string) string {
	sum := sha256.Sum256([]byte(body))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// corrections are the entries of `relocated`.
func (w *world) corrections() (all []event.Relocated) {
	w.t.Helper()
	entries, err := w.rdb.XRange(w.t.Context(), w.store.Keys().Relocated(), "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		values := map[string]string{}
		for k, v := range e.Values {
			values[k] = v.(string)
		}
		r, err := event.ParseRelocated(values)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestARowIsCorrectedOnlyWhereOneOtherTierHasItsFile(t *testing.T) {
	const body, told = "the bytes", "the committer was told that the row must name gold"
	for _, c := range []struct {
		name   string
		digest string
		size   int
		bySize bool
		silver bool // has the file as well
		want   string
	}{
		{"the digest is the row's", digest(body), 9, false, false, told},
		{"the digest is another", digest("others"), 9, true, false, "have " + digest(body)},
		{"two tiers have it", digest(body), 9, false, true, "silver and gold have a file"},
		{"no digest, by its size", "", 9, true, false, told},
		{"no digest, not by its size", "", 9, false, false, "see --by-size"},
		{"no digest, another size", "", 8, true, false, "gold has 9 bytes, the last copy had 8"},
		{"neither digest nor size", "", 0, true, false, "neither a digest nor a size"},
	} {
		for _, kind := range []string{"file", "directory"} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				w := newWorld(t)
				w.bySize = c.bySize
				w.row(1, "bronze", "shows/a")
				file := "shows/a"
				rowDigest := c.digest
				if kind == "directory" {
					file += "/1.ts"
					if rowDigest == digest(body) {
						rowDigest = digest(strings.TrimPrefix(digest(body), "sha256:") + "  1.ts\n")
					}
				}
				w.exec("UPDATE contents SET generation = 5, digest = ?, size_bytes = ?, view_count = 77 WHERE cid = 1", rowDigest, c.size)
				w.file("gold", file, body)
				if c.silver {
					w.file("silver", file, body)
				}
				found, actions, err := w.run(true, false)
				if err != nil || len(found) == 0 || found[0] != "missing 1 bronze shows/a" {
					t.Fatalf("%q, %v", found, err)
				}
				want := c.want
				if kind == "directory" && strings.HasPrefix(want, "have sha256") {
					want = "the last copy had"
				}
				if !strings.Contains(actions[0], want) {
					t.Errorf("%q does not say %q", actions[0], want)
				}
				all := w.corrections()
				if c.want != told {
					if len(all) != 0 {
						t.Errorf("entries %+v", all)
					}
					if who, err := w.store.Holder(t.Context(), 1); who != "" || err != nil {
						t.Errorf("the lock is held: %q, %v", who, err)
					}
					return
				}
				if len(all) != 1 || all[0].From != "bronze" || all[0].To != "gold" || all[0].Generation != 5 || all[0].Bytes != 9 ||
					all[0].Method != "found" || all[0].Count != 77 || c.digest != "" && all[0].Digest != rowDigest {
					t.Fatalf("entries %+v", all)
				}
				if len(found) != 1 { // the copy on gold is in flight now
					t.Errorf("findings %q", found)
				}
				w.want(false)
			})
		}
	}
}

// A mover or an operator may be faster at any moment.
func TestARowThatSomebodyWorksOnIsNotCorrected(t *testing.T) {
	for what, disturb := range map[string]func(w *world){
		"the row has changed":     func(w *world) { w.exec("UPDATE contents SET generation = generation + 1 WHERE cid = 1") },
		"the file has come back":  func(w *world) { w.file("bronze", "a", "1") },
		"the lock is another's":   func(w *world) { w.steal() },
		"the file has other size": func(w *world) { w.file("gold", "a", "12") },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.row(1, "bronze", "a")
			w.exec("UPDATE contents SET digest = ? WHERE cid = 1", digest("1"))
			w.file("gold", "a", "1")
			done := false
			w.fs = fsys.FS{Hook: func(step fsys.Step, _ string) error {
				if step == fsys.ClearReleased && !done { // under the lock, before the file is read
					done = true
					disturb(w)
				}
				return nil
			}}
			_, actions, err := w.run(true, false)
			if err != nil || !done {
				t.Fatal(err, done)
			}
			all := w.corrections()
			if what == "the row has changed" { // the committer refuses the entry: its generation is old
				if len(all) != 1 || all[0].Generation != 0 {
					t.Errorf("entries %+v", all)
				}
				return
			}
			if len(all) != 0 || !strings.HasPrefix(actions[0], "left") {
				t.Errorf("%q, entries %+v", actions, all)
			}
		})
	}
}

// steal plays a worker that has the lock because verify was paused for longer than the lease.
func (w *world) steal() {
	w.t.Helper()
	if err := w.rdb.Set(w.t.Context(), w.store.Keys().Lock(1), "relocating x y z", time.Minute).Err(); err != nil {
		w.t.Error(err)
	}
}

// The commits of the last moves are lost, as in a failover to a replica of MySQL that lagged. The old copies were released.
func TestAfterCommitsWereLostRepairMakesEveryRowNameItsFile(t *testing.T) {
	w := relocatortest.New(t)
	w.Run()
	bodies := map[int][]byte{}
	for id := 1; id <= 5; id++ {
		bodies[id] = w.Item(id, fmt.Sprintf("shows/%d", id))
		w.Post(id, 5000)
	}
	w.Settled()
	for id := range bodies {
		w.Post(id, 1500)
		w.Exec("UPDATE contents SET digest = ? WHERE cid = ?", digest(string(bodies[id])), id)
	}
	w.Settled()
	w.Exec("UPDATE contents SET content_level = 'gold', generation = 2, view_count = 5000")
	w.Exec("UPDATE contents SET digest = '' WHERE cid = 1")
	w.Exec("DELETE FROM update_history WHERE new_level = 'silver'")
	told := 0
	sum, err := verify.Run(t.Context(), verify.Options{Catalog: w.Catalog, Store: w.Store, Lease: relocatortest.MinIdle, Repair: true,
		Sweep: func(ctx context.Context, m *mover.Mover, l policy.Level) error { return nil },
		NewView: func(s state.State) event.View {
			return event.View{EventID: uuid.Must(uuid.NewV7()).String(), ID: s.ID, Count: s.Count, Target: s.Target, DBLevel: s.DBLevel,
				Filename: s.Filename, PostedAt: time.Now()}
		},
		Report: func(f verify.Finding, action string) {
			if strings.Contains(action, "the committer was told") {
				told++
			}
		}})
	if err != nil || told != len(bodies)-1 { // the first has no digest any more, and its event is not appended again either
		t.Fatalf("%d rows are to be corrected, %v, %+v", told, err, sum)
	}
	w.Settled()
	w.DeadLetters(0)
	for id, body := range bodies {
		if id > 1 {
			w.Lies(id, "silver", body)
		}
	}
	delete(bodies, 1)
	var n int
	if err := w.Catalog.DB().QueryRow("SELECT COUNT(*) FROM update_history WHERE new_level = 'silver'").Scan(&n); err != nil || n != len(bodies) {
		t.Errorf("%d rows in the history, %v", n, err)
	}
}
