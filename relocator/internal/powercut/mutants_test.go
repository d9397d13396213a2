package powercut_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
)

// leaveOut makes operations of a step succeed without being done: all, or those that which chooses.
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

// secondCall is for a step that opens what it syncs.
func secondCall(r *run, _ string) bool {
	r.calls++
	return r.calls%2 == 0
}

func parent(r *run, path string) bool { return path == filepath.Dir(r.place(1)) }
func above(r *run, path string) bool  { return !parent(r, path) }

// publishByRename gives the record itself the final name.
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

// publishEarly gives the temporary its final name before it has its bytes.
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

func (s scenario) target() string { return fstype(s.disks[len(s.disks)-1]) }

// plain tells scenarios with nothing special about them.
func (s scenario) plain() bool { return s.source == synced && !s.shared && !s.stream && !s.busy }

// neighbours is plain, but for others in the same folders: nothing else makes the file system sync these.
func (s scenario) neighbours() bool { return s.shared && !s.busy }

// calm is plain, but beside others where the target is btrfs: that writes all there is when a folder is synced that was renamed,
// as those are that the mover makes above a final name.
func (s scenario) calm() bool {
	return s.source == synced && s.shared == (s.target() == btrfs) && !s.stream && !s.busy
}

// mutant is a rule that is broken.
type mutant struct {
	name string
	mutation
	on     func(scenario) bool // where it is tried
	unseen func(scenario) bool // where no cut shows it; nil: nowhere
	why    string              // not
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
		why:    "to drop it from the cache, the kernel writes it; the next fsync writes its length"},
	{name: "a clone is not synced", mutation: leaveOut(fsys.FsyncTemp, nil),
		on:     func(s scenario) bool { return s.method == mover.Cloned && s.calm() },
		unseen: func(s scenario) bool { return s.target() == xfs },
		why:    "a clone is metadata alone: it is in the log, which the fsync of any folder writes"},
	{name: "the folders of a tree are not synced", mutation: leaveOut(fsys.FsyncTree, nil),
		on:     func(s scenario) bool { return s.kind == directory && s.calm() },
		unseen: func(s scenario) bool { return s.target() != btrfs || s.method == mover.Copied },
		why: "ext4 and XFS write the journal as a whole: the fsync of the folder above brings them; on btrfs, where others lie " +
			"there, those of the copies do"},
	{name: "the record is not synced", mutation: leaveOut(fsys.FsyncRecord, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the record is older than what it records, and all three write older names with newer ones; POSIX does not say so"},
	{name: "the final name of a file is not synced", mutation: leaveOut(fsys.FsyncFolder, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }},
	{name: "the final name's folder is not synced, those above are", mutation: leaveOut(fsys.FsyncFolder, parent),
		on:     func(s scenario) bool { return s.kind == file && s.neighbours() },
		unseen: func(s scenario) bool { return s.target() == ext4 },
		why:    "ext4 writes its whole journal for the fsync of a folder above"},
	{name: "the folders above the final name are not synced", mutation: leaveOut(fsys.FsyncFolder, above),
		on: func(s scenario) bool { return s.kind == file && s.plain() }, unseen: always,
		why: "the fsync of a new folder's content brings the folder, on all three; POSIX does not say so"},
	{name: "a directory's final name is not synced", mutation: leaveOut(fsys.FsyncFolder, nil),
		on: func(s scenario) bool { return s.kind == directory && s.neighbours() }, unseen: always,
		why: "the fsync of the attempt's folder, where it was renamed from, writes both ends of a rename"},
	{name: "the attempt's folder is not synced", mutation: leaveOut(fsys.FsyncAttempt, secondCall),
		on: func(s scenario) bool { return s.kind == directory && s.neighbours() }, unseen: always,
		why: "the fsync of the final name's folder writes both ends of a rename"},
	{name: "neither end of a directory's rename is synced",
		mutation: leaveOutBoth(leaveOut(fsys.FsyncFolder, nil), leaveOut(fsys.FsyncAttempt, secondCall)),
		on:       func(s scenario) bool { return s.kind == directory && s.neighbours() }},
	{name: "what is adopted is not synced", mutation: leaveOut(fsys.FsyncAdopted, nil),
		on: func(s scenario) bool { return s.source == taken && s.stream }},
	{name: "the folder of the old copy is not synced", mutation: leaveOut(fsys.FsyncEmptied, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the fsync of released/ writes both ends of the rename into it; on btrfs because the file was synced before"},
	{name: "released/ is not synced", mutation: leaveOut(fsys.FsyncReleased, nil),
		on: func(s scenario) bool { return s.kind == file && s.neighbours() }, unseen: always,
		why: "the fsync of the old copy's folder writes both ends of the rename into it"},
	{name: "neither end of a release is synced",
		mutation: leaveOutBoth(leaveOut(fsys.FsyncEmptied, nil), leaveOut(fsys.FsyncReleased, nil)), on: scenario.neighbours},
	{name: "the temporary is renamed to the final name", mutation: mutation{hook: publishByRename},
		on: func(s scenario) bool { return s.kind == file && s.plain() }},
	{name: "the final name is there before the bytes", mutation: mutation{hook: publishEarly},
		on: func(s scenario) bool {
			return s.kind == file && s.source == synced && s.busy && s.method != mover.Linked
		}},
	{name: "the record goes before the emit", mutation: mutation{discardFirst: true},
		on: func(s scenario) bool {
			return s.kind == file && s.source == synced && s.busy && s.method == mover.Linked
		}},
	{name: "the old copy goes before the commit", mutation: mutation{releaseFirst: true},
		on: func(s scenario) bool { return s.kind == file && s.plain() }},
	{name: "the commit comes before the copy", mutation: mutation{commitFirst: true}, on: scenario.plain},
}

// TestEveryBrokenRuleIsFound is the test of the test.
func TestEveryBrokenRuleIsFound(t *testing.T) {
	begin, found, unseen := time.Now(), 0, 0
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			seen, tried := 0, 0
			for _, s := range scenarios() {
				if s.whole || !m.on(s) { // a syncfs makes up for a sync that is left out
					continue
				}
				tried++
				if m.unseen != nil && m.unseen(s) {
					unseen++
					violation := m.try(t, s)
					if violation != "" {
						t.Logf("listed as not observable, and found this time: %s", violation)
					} else {
						t.Logf("not observable here: %s: %s", s, m.why)
					}
					continue
				}
				// Others on this machine may sync everything just when it matters: that hides a mutant, and never makes one.
				violation := ""
				for n := 0; n < 3 && violation == ""; n++ {
					violation = m.try(t, s)
				}
				if violation == "" {
					t.Errorf("%s: it survived", s)
					continue
				}
				found++
				seen++
				if seen == 1 {
					t.Logf("found: %s", violation)
				}
			}
			if tried == 0 {
				t.Error("there is no scenario for it")
			}
		})
	}
	t.Logf("%d mutants; found in %d scenarios, not observable in %d; %v", len(mutants), found, unseen,
		time.Since(begin).Round(time.Second))
}

// try returns the first violation, "" where there is none.
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
