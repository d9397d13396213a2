package powercut_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
)

// leaveOut skips operations of a step: all, or those for which which returns true.
func leaveOut(step fsys.Step, which func(r *run, path string) bool) mutation {
	return mutation{hook: func(r *run, s fsys.Step, path string) error {
		if s == step && (which == nil || which(r, path)) {
			r.mutated++
			return fsys.Skip
		}
		return nil
	}}
}

func leaveOutBoth(a, b mutation) mutation {
	return mutation{hook: func(r *run, s fsys.Step, path string) error {
		if err := a.hook(r, s, path); err != nil {
			return err
		}
		return b.hook(r, s, path)
	}}
}

// secondCall chooses the sync of a step whose first operation opens the file.
func secondCall(r *run, _ string) bool {
	r.calls++
	return r.calls%2 == 0
}

// parent chooses the folder of the final name; above chooses those above it.
func parent(r *run, path string) bool { return path == filepath.Dir(r.place(1)) }
func above(r *run, path string) bool  { return !parent(r, path) }

// publishByRename renames the temporary to the final name, so that the record is lost.
func publishByRename(r *run, step fsys.Step, path string) error {
	if step != fsys.Publish {
		return nil
	}
	r.mutated++
	if err := os.Rename(r.attempt(), path); err != nil {
		return err
	}
	return fsys.Skip
}

// publishEarly gives the temporary its final name before it has bytes.
func publishEarly(r *run, step fsys.Step, _ string) error {
	switch step {
	case fsys.Clone: // the first operation on the empty file
		r.mutated++
		if err := os.MkdirAll(filepath.Dir(r.place(1)), 0o755); err != nil {
			return err
		}
		return os.Link(r.attempt(), r.place(1))
	case fsys.Publish:
		return fsys.Skip
	}
	return nil
}

// target is the file system of the target.
func (s scenario) target() string { return fstype(s.disks[len(s.disks)-1]) }

// plain tells whether a scenario has nothing special.
func (s scenario) plain() bool { return s.source == synced && !s.shared && !s.stream && !s.busy }

// neighbours tells whether another item lies in the same folders. Nothing else then makes the file system sync them.
func (s scenario) neighbours() bool { return s.shared && !s.busy }

// calm tells whether a scenario is plain, or on btrfs plain with another item in the same folders. btrfs writes
// everything when a renamed folder is synced, and the mover renames the folders that it makes above a final name.
func (s scenario) calm() bool {
	return s.source == synced && s.shared == (s.target() == btrfs) && !s.stream && !s.busy
}

// mutant is a broken rule.
type mutant struct {
	name string
	mutation
	on     func(scenario) bool // the scenarios in which it is tried
	unseen func(scenario) bool // the scenarios in which no cut shows it; nil: none
	why    string              // why no cut shows it
}

func always(scenario) bool { return true }

var mutants = []mutant{
	{name: "the source is linked, not synced", mutation: leaveOut(fsys.FsyncSource, nil),
		on: func(s scenario) bool { return s.method == mover.Linked && s.source == unsynced && !s.busy }},
	{name: "the source is copied, not synced", mutation: leaveOut(fsys.FsyncSource, nil),
		on: func(s scenario) bool { return s.method == mover.Copied && s.source == unsynced && s.kind == file }},
	{name: "a copy is not synced", mutation: leaveOut(fsys.FsyncTemp, nil),
		on: func(s scenario) bool { return s.method == mover.Copied && s.source == synced && s.stream }},
	{name: "a copy that is read back is not synced", mutation: leaveOut(fsys.FsyncTemp, nil),
		on:     func(s scenario) bool { return s.method == mover.Copied && s.calm() },
		unseen: func(s scenario) bool { return s.target() != btrfs },
		why:    "dropping the copy from the page cache makes the kernel write it; the next fsync writes its length"},
	{name: "a clone is not synced", mutation: leaveOut(fsys.FsyncTemp, nil),
		on:     func(s scenario) bool { return s.method == mover.Cloned && s.calm() },
		unseen: func(s scenario) bool { return s.target() == xfs },
		why:    "a clone is metadata only: it is in the log, which the fsync of any folder writes"},
	{name: "the folders of a tree are not synced", mutation: leaveOut(fsys.FsyncTree, nil),
		on:     func(s scenario) bool { return s.kind == directory && s.calm() },
		unseen: func(s scenario) bool { return s.target() != btrfs || s.method == mover.Copied },
		why: "ext4 and XFS write the whole journal: the fsync of the folder above writes these folders; on btrfs the fsyncs " +
			"of the copies do, where other items lie there"},
	{name: "the record is not synced", mutation: leaveOut(fsys.FsyncRecord, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the record is older than the published name, and all three write older names with newer ones; POSIX does not promise it"},
	{name: "the final name of a file is not synced", mutation: leaveOut(fsys.FsyncFolder, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }},
	{name: "the final name's folder is not synced, but those above it are", mutation: leaveOut(fsys.FsyncFolder, parent),
		on:     func(s scenario) bool { return s.kind == file && s.neighbours() },
		unseen: func(s scenario) bool { return s.target() == ext4 },
		why:    "ext4 writes its whole journal for the fsync of a folder above"},
	{name: "the folders above the final name are not synced", mutation: leaveOut(fsys.FsyncFolder, above),
		on: func(s scenario) bool { return s.kind == file && s.plain() }, unseen: always,
		why: "the fsync of a new folder also writes its own name, on all three; POSIX does not promise it"},
	{name: "a directory's final name is not synced", mutation: leaveOut(fsys.FsyncFolder, nil),
		on: func(s scenario) bool { return s.kind == directory && s.neighbours() }, unseen: always,
		why: "the fsync of the attempt's folder, the old parent, writes both ends of a rename"},
	{name: "the attempt's folder is not synced", mutation: leaveOut(fsys.FsyncAttempt, secondCall),
		on: func(s scenario) bool { return s.kind == directory && s.neighbours() }, unseen: always,
		why: "the fsync of the final name's folder writes both ends of a rename"},
	{name: "neither end of a directory's rename is synced",
		mutation: leaveOutBoth(leaveOut(fsys.FsyncFolder, nil), leaveOut(fsys.FsyncAttempt, secondCall)),
		on:       func(s scenario) bool { return s.kind == directory && s.neighbours() }},
	{name: "what is adopted is not synced", mutation: leaveOut(fsys.FsyncAdopted, nil),
		on: func(s scenario) bool { return s.source == adopted && s.stream }},
	{name: "the folder of the old copy is not synced", mutation: leaveOut(fsys.FsyncEmptied, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the fsync of released/ writes both ends of the rename; on btrfs because the file was synced before"},
	{name: "released/ is not synced", mutation: leaveOut(fsys.FsyncReleased, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the fsync of the old copy's folder writes both ends of the rename"},
	{name: "neither end of a release is synced",
		mutation: leaveOutBoth(leaveOut(fsys.FsyncEmptied, nil), leaveOut(fsys.FsyncReleased, nil)), on: scenario.neighbours},
	{name: "the temporary is renamed to the final name", mutation: mutation{hook: publishByRename},
		on: func(s scenario) bool { return s.kind == file && s.plain() }},
	{name: "the final name is there before the bytes", mutation: mutation{hook: publishEarly},
		on: func(s scenario) bool {
			return s.kind == file && s.source == synced && s.busy && s.method != mover.Linked
		}},
	{name: "the record is removed before the emit", mutation: mutation{discardFirst: true},
		on: func(s scenario) bool {
			return s.kind == file && s.source == synced && s.busy && s.method == mover.Linked
		}},
	{name: "the old copy is removed before the commit", mutation: mutation{releaseFirst: true},
		on: func(s scenario) bool { return s.kind == file && s.plain() }},
	{name: "the commit comes before the copy", mutation: mutation{commitFirst: true}, on: scenario.plain},
}

// TestEveryBrokenRuleIsFound tests the power-cut tests: they must find every broken rule.
func TestEveryBrokenRuleIsFound(t *testing.T) {
	begin, found, unseen := time.Now(), 0, 0
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			seen, tried := 0, 0
			for _, s := range scenarios() {
				if s.whole || !m.on(s) { // a syncfs replaces a skipped fsync
					continue
				}
				tried++
				if m.unseen != nil && m.unseen(s) {
					unseen++
					violation := m.try(t, s)
					if violation != "" {
						t.Logf("listed as not observable, but found this time: %s", violation)
					} else {
						t.Logf("not observable here: %s: %s", s, m.why)
					}
					continue
				}
				// Another process on this machine may sync everything at the wrong moment. That can hide a mutant, but never
				// cause a violation.
				violation := ""
				for n := 0; n < 3 && violation == ""; n++ {
					violation = m.try(t, s)
				}
				if violation == "" {
					t.Errorf("%s: no cut showed it", s)
					continue
				}
				found++
				seen++
				if seen == 1 {
					t.Logf("found: %s", violation)
				}
			}
			if tried == 0 {
				t.Error("no scenario tries it")
			}
		})
	}
	t.Logf("%d mutants; found in %d scenarios, not observable in %d; %v", len(mutants), found, unseen,
		time.Since(begin).Round(time.Second))
}

// try records the move of a scenario with the rule broken. It returns the first violation; "" where there is none.
func (m *mutant) try(t *testing.T, s scenario) string {
	t.Helper()
	r, err := record(s, m.mutation)
	if err != nil {
		t.Fatal(err)
	}
	defer r.discard()
	if m.hook != nil && r.mutated == 0 {
		t.Fatalf("%s: the rule was never broken", s)
	}
	_, _, violations, err := r.checkAll(true)
	if err != nil {
		t.Fatal(err)
	}
	if len(violations) == 0 {
		return ""
	}
	return violations[0]
}
