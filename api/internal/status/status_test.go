package status_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/status"
)

const (
	now     = "2026-11-22T01:02:03.000000Z"
	earlier = "2026-11-22T00:00:00.000000Z"
	justNow = "2026-11-22T01:02:00.000000Z"
)

func service(program, id, started string) client.Service {
	return client.Service{Program: program, ID: id, Version: "1", StartedAt: &started, Alive: true, Ready: true}
}

func gone(v client.Service) client.Service {
	v.Alive, v.Ready, v.AgeMS = false, false, 60_000
	return v
}

// tier is one that a relocator reports.
func tier(level, is string, waiting int64) client.Tier {
	total, used, free, inodes := int64(1<<30), int64(1<<30-84<<10), int64(84<<10), int64(100)
	return client.Tier{Level: level, State: is, Reason: "the reason", Waiting: waiting, TotalBytes: &total, UsedBytes: &used, FreeBytes: &free,
		FreeInodes: &inodes, WorkerID: "r"}
}

func TestAttentionIsWorstFirst(t *testing.T) {
	r, c := service("relocator", "r", earlier), service("committer", "c", earlier)
	misses, warns, other, unversioned := r, r, r, r
	misses.Missing = map[string]string{"tiers": "gold hangs", "redis": "away"}
	warns.Warnings = map[string]string{"redis-memory": "full"}
	other.Version, other.ID, unversioned.Version = "2", "r2", ""
	stages := func(ms int64) []client.Stage { return []client.Stage{{Stage: "commit", Unsettled: 2, OldestMS: ms}} }
	for name, test := range map[string]struct {
		d    client.Status
		want string
	}{
		"nothing":                         {client.Status{Services: []client.Service{r, c}, Stages: stages(599_999)}, ""},
		"nobody lives":                    {client.Status{}, "no-relocator no-committer"},
		"one is gone":                     {client.Status{Services: []client.Service{r, gone(c)}}, "no-committer lost"},
		"one of two is gone":              {client.Status{Services: []client.Service{r, c, gone(other)}}, "lost"},
		"another was started since":       {client.Status{Services: []client.Service{service("relocator", "r3", justNow), c, gone(r)}}, ""},
		"a service misses things":         {client.Status{Services: []client.Service{misses, c}}, "not-ready not-ready"},
		"what a dead service missed":      {client.Status{Services: []client.Service{gone(misses), other, c}}, "lost versions"},
		"warnings are said once":          {client.Status{Services: []client.Service{warns, warns, c}}, "warning"},
		"a tier is full":                  {client.Status{Services: []client.Service{r, c}, Waiting: map[string]int64{"tier-full": 93, "lock": 5, "grace": 9}}, "tier"},
		"a full tier is reported":         {client.Status{Services: []client.Service{r, c}, Tiers: []client.Tier{tier("gold", "full", 93)}, Waiting: map[string]int64{"tier-full": 93}}, "tier"},
		"two tiers, the worse one first":  {client.Status{Services: []client.Service{r, c}, Tiers: []client.Tier{tier("silver", "full", 93), tier("gold", "hanging", 1), tier("bronze", "ok", 0)}}, "tier tier"},
		"a draining tier":                 {client.Status{Services: []client.Service{r, c}, Tiers: []client.Tier{tier("gold", "draining", 0)}}, ""},
		"no relocator reports any tier":   {client.Status{Services: []client.Service{r, c}, Tiers: []client.Tier{tier("gold", "unknown", 0)}}, ""},
		"versions":                        {client.Status{Services: []client.Service{unversioned, c}}, "versions"},
		"an old entry":                    {client.Status{Services: []client.Service{r, c}, Stages: stages(600_000)}, "old-entry"},
		"an old entry while paused":       {client.Status{Services: []client.Service{r, c}, Stages: stages(600_000), Paused: true}, "paused"},
		"everything, nobody before paper": {client.Status{Services: []client.Service{warns}, Paused: true, DeadTotal: 1, Dead: []client.DeadKind{{Count: 1}}, Unreachable: []client.Unreachable{{Tiers: []string{"a", "b"}}}}, "no-committer unreachable dead-letters warning paused"},
	} {
		test.d.At = now
		var kinds []string
		for _, a := range status.Attention(test.d, nil) {
			kinds = append(kinds, a.Kind)
			if a.What == "" || a.Do == "" || !strings.HasSuffix(a.What, ".") || !strings.HasSuffix(a.Do, ".") {
				t.Errorf("%s: no sentence: %+v", name, a)
			}
		}
		if got := strings.Join(kinds, " "); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestDeadLettersAreNamedByKind(t *testing.T) {
	r, c := service("relocator", "r", earlier), service("committer", "c", earlier)
	d := client.Status{At: now, Services: []client.Service{r, c}, DeadTotal: 4, Dead: []client.DeadKind{{Stage: "relocate", Reason: "conflict", Count: 3}, {Count: 1}}}
	if got := fmt.Sprint(status.Attention(d, nil)); !strings.Contains(got, "4 dead letters wait: 3 relocate conflict, 1 of older versions.") {
		t.Error(got)
	}
}

func TestEachStateOfATierHasItsSentence(t *testing.T) {
	services := []client.Service{service("relocator", "r", earlier), service("committer", "c", earlier)}
	noInode, roomy, alone, disputed := tier("gold", "full", 1), tier("gold", "full", 93), tier("gold", "full", 0), tier("gold", "away", 0)
	*noInode.FreeInodes, *roomy.FreeBytes, disputed.Disagree = 0, 1<<29, true
	blind := client.Tier{Level: "gold", State: "unknown", Reason: "no relocator reports it"}
	for _, c := range []struct {
		tier     client.Tier
		want, do string
	}{
		{tier("gold", "full", 93), "93 moves to gold wait: it is full, 84 KiB free.", "Make room on it"},
		{noInode, "1 move to gold waits: it is full, 84 KiB free and no inode left.", "Make room on it"},
		{roomy, "93 moves to gold wait: it is full, 512 MiB free, which is too little for them.", "Make room on it"},
		{alone, "gold is full, 84 KiB free.", "Make room on it"},
		{tier("gold", "hanging", 1200), "1,200 entries wait for gold: it hangs: the reason.", "kernel's log"},
		{tier("gold", "hanging", 0), "gold hangs: the reason.", "kernel's log"},
		{tier("gold", "read-only", 1), "1 entry waits for gold: it is read-only: the reason.", "remount"},
		{tier("gold", "failing", 0), "gold cannot be written to: the reason.", "replace the disk"},
		{tier("gold", "away", 0), "gold is away: the reason.", "Mount its disk."},
		{tier("gold", "no-identity", 0), "gold was never made: the reason.", "init-tiers"},
		{tier("gold", "refused", 0), "gold is refused: the reason.", "right disk"},
		{tier("gold", "suspect", 0), "gold is suspect: the reason.", "kernel's log"},
		{disputed, "gold is away: the reason. The relocator r says so, and another one does not.", "Mount its disk."},
		{blind, "gold is unknown: no relocator reports it.", "TIERFLOW_TIERS"},
	} {
		got := status.Attention(client.Status{At: now, Services: services, Tiers: []client.Tier{tier("bronze", "ok", 0), c.tier}}, nil)
		if len(got) != 1 || got[0].Kind != "tier" || got[0].What != c.want || !strings.Contains(got[0].Do, c.do) {
			t.Errorf("want %q, %q: %+v", c.want, c.do, got)
		}
	}
}

func TestWhatARelocatorMissesOfATierThatItReportsIsSaidOnce(t *testing.T) {
	r, c := service("relocator", "r", earlier), service("committer", "c", earlier)
	r.Missing = map[string]string{"tiers": "level gold hangs", "redis": "away"}
	d := client.Status{At: now, Services: []client.Service{r, c}, Tiers: []client.Tier{tier("gold", "hanging", 0)}}
	for blaming, want := range map[bool]int{true: 2, false: 3} {
		if got := status.Attention(d, map[string]bool{"r": blaming}); len(got) != want {
			t.Errorf("the relocator reports the tier: %v: %+v", blaming, got)
		}
	}
}

func TestAReleaseThatWaitsForItsGraceIsNotLateAndOtherOldEntriesAre(t *testing.T) {
	services := []client.Service{service("relocator", "r", earlier), service("committer", "c", earlier)}
	minutes := func(n int64) int64 { return n * 60_000 }
	waits := func(stream, since string) *client.WaitingEntry {
		return &client.WaitingEntry{Stream: stream, CID: "7", Reason: "lock", Error: "another worker has it", Since: since}
	}
	for name, c := range map[string]struct {
		stage   client.Stage
		inGrace int64
		oldest  *client.WaitingEntry
		want    string
	}{
		"moves for ten minutes":        {client.Stage{Stage: "relocate", Unsettled: 3, OldestMS: minutes(10)}, 0, nil, "The oldest of 3 entries at the stage relocate has waited for 10m0s."},
		"for less":                     {client.Stage{Stage: "relocate", Unsettled: 3, OldestMS: minutes(10) - 1}, 0, nil, ""},
		"with what the item waits for": {client.Stage{Stage: "relocate", Unsettled: 1, OldestMS: minutes(11)}, 0, waits("views", justNow), "The oldest of 1 entry at the stage relocate has waited for 11m0s: item 7 waits (lock): another worker has it."},
		"releases in their grace":      {client.Stage{Stage: "release", Unsettled: 3, OldestMS: minutes(19), GraceMS: minutes(20)}, 3, nil, ""},
		"and a new one":                {client.Stage{Stage: "release", Unsettled: 4, OldestMS: minutes(19), GraceMS: minutes(20)}, 3, nil, ""},
		"after a restart":              {client.Stage{Stage: "release", Unsettled: 4, OldestMS: minutes(39), GraceMS: minutes(20)}, 3, nil, ""},
		"after many restarts":          {client.Stage{Stage: "release", Unsettled: 3, OldestMS: minutes(500), GraceMS: minutes(20)}, 3, nil, ""},
		"nobody waits for the grace":   {client.Stage{Stage: "release", Unsettled: 3, OldestMS: minutes(50), GraceMS: minutes(20)}, 0, nil, "The oldest of 3 entries at the stage release has waited for 50m0s."},
		"a short grace":                {client.Stage{Stage: "release", Unsettled: 3, OldestMS: minutes(11), GraceMS: 5000}, 0, nil, "The oldest of 3 entries at the stage release has waited for 11m0s."},
		"one that waits for a lock":    {client.Stage{Stage: "release", Unsettled: 9, OldestMS: minutes(65), GraceMS: minutes(60)}, 8, waits("committed", earlier), "The oldest of 9 entries at the stage release has waited for 1h5m0s: item 7 waits (lock): another worker has it."},
	} {
		d := client.Status{At: now, Services: services, Stages: []client.Stage{c.stage}, Waiting: map[string]int64{"grace": c.inGrace}, OldestWait: c.oldest}
		got := ""
		for _, a := range status.Attention(d, nil) {
			got += a.Kind + ": " + a.What
		}
		if c.want != "" {
			c.want = "old-entry: " + c.want
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
