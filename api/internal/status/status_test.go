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
		"versions":                        {client.Status{Services: []client.Service{unversioned, c}}, "versions"},
		"an old entry":                    {client.Status{Services: []client.Service{r, c}, Stages: stages(600_000)}, "old-entry"},
		"an old entry while paused":       {client.Status{Services: []client.Service{r, c}, Stages: stages(600_000), Paused: true}, "paused"},
		"everything, nobody before paper": {client.Status{Services: []client.Service{warns}, Paused: true, DeadTotal: 1, Dead: []client.DeadKind{{Count: 1}}, Unreachable: []client.Unreachable{{Tiers: []string{"a", "b"}}}}, "no-committer unreachable dead-letters warning paused"},
	} {
		test.d.At = now
		var kinds []string
		for _, a := range status.Attention(test.d, map[string]string{"tier-full": "level gold has no room"}) {
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
