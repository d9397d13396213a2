// Package status makes one document that says how everything is, and what waits for a human. The api makes its sentences, so all
// who show them agree.
package status

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/state"
)

// long is how old the oldest entry of a stage may be before it waits for a human.
const long = 10 * time.Minute

// someWaiting is how many waiting entries are read for their errors.
const someWaiting = 100

// Read makes the document. living is how long a worker's heartbeat counts. It fails where Redis cannot be asked.
func Read(ctx context.Context, store *state.Store, living time.Duration) (client.Status, error) {
	d := client.Status{At: event.FormatTime(time.Now()), Services: []client.Service{}, Dead: []client.DeadKind{}, Unreachable: []client.Unreachable{}}
	services, err := store.Services(ctx, living)
	if err != nil {
		return d, err
	}
	for _, v := range services {
		one := client.Service{Program: v.Program, ID: v.ID, Version: v.Version, Alive: v.Alive, Ready: v.Alive && len(v.Missing) == 0,
			AgeMS: v.Age.Milliseconds(), Missing: orEmpty(v.Missing), Warnings: orEmpty(v.Warnings)}
		if !v.StartedAt.IsZero() {
			at := event.FormatTime(v.StartedAt)
			one.StartedAt = &at
		}
		d.Services = append(d.Services, one)
	}
	load, err := store.Load(ctx)
	if err != nil {
		return d, err
	}
	for _, s := range load.Stages {
		d.Stages = append(d.Stages, client.Stage{Stage: s.Stage, Unsettled: s.Unsettled, OldestMS: s.Oldest.Milliseconds()})
	}
	d.DeadTotal = load.DeadTotal()
	for kind, n := range load.Dead {
		d.Dead = append(d.Dead, client.DeadKind{Stage: kind.Stage, Reason: kind.Reason, Count: n})
	}
	slices.SortFunc(d.Dead, func(a, b client.DeadKind) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Stage, b.Stage), strings.Compare(a.Reason, b.Reason))
	})
	longest, counts, err := store.Waiting(ctx, "", someWaiting)
	if err != nil {
		return d, err
	}
	d.Waiting = counts
	errs := map[string]string{}
	for _, w := range longest {
		errs[w.Reason] = cmp.Or(errs[w.Reason], w.Error)
	}
	if d.Paused, err = store.Paused(ctx); err != nil {
		return d, err
	}
	if d.Unreachable, err = Unreachable(ctx, store); err != nil {
		return d, err
	}
	d.Attention = Attention(d, errs)
	return d, nil
}

// Unreachable lists the sets of tiers that entries wait for and that no living relocator reaches together.
func Unreachable(ctx context.Context, store *state.Store) ([]client.Unreachable, error) {
	missing, err := store.Unreachable(ctx)
	list := []client.Unreachable{}
	for _, tiers := range slices.Sorted(maps.Keys(missing)) {
		list = append(list, client.Unreachable{Tiers: strings.Split(tiers, ","), SeenAt: event.FormatTime(missing[tiers])})
	}
	return list, err
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// sentences collects what waits for a human.
type sentences []client.Attention

func (s *sentences) add(kind, do, format string, args ...any) {
	*s = append(*s, client.Attention{Kind: kind, What: fmt.Sprintf(format, args...), Do: do})
}

// tierReasons are the reasons of waiting that a human ends, and what to do about each.
var tierReasons = []struct{ reason, is, do string }{
	{"tier-hanging", "hangs", "See the kernel's log of that host: a disk or its controller does not answer."},
	{"tier-failing", "cannot be written to", "See the kernel's log of that host; mend, remount or replace the disk."},
	{"tier-away", "is away", "Mount its disk."},
	{"tier-full", "is full", "Make room on it, or lower what its level takes."},
}

// Attention says what of a document waits for a human, worst first. errs has an error of the longest wait for each reason.
func Attention(d client.Status, errs map[string]string) []client.Attention {
	s := sentences{}
	s.nobody(d)
	s.services(d)
	for _, r := range tierReasons {
		if n := d.Waiting[r.reason]; n > 0 {
			s.add("tier", r.do, "%s for a tier that %s%s.", count(n, "entry waits", "entries wait"), r.is, after(": ", errs[r.reason]))
		}
	}
	for _, u := range d.Unreachable {
		s.add("unreachable", "Start a relocator that reaches them (TIERFLOW_TIERS).", "Entries wait for a relocator that reaches %s: none does.",
			strings.Join(u.Tiers, " and "))
	}
	for _, st := range d.Stages {
		if age := time.Duration(st.OldestMS) * time.Millisecond; age >= long && !d.Paused {
			s.add("old-entry", "Look at tierctl relocations, and at what /readyz of the relocators and the committers names.",
				"The oldest of %s has waited for %s.", count(st.Unsettled, "entry", "entries")+" at the stage "+st.Stage, age.Truncate(time.Minute))
		}
	}
	if d.DeadTotal > 0 {
		var kinds []string
		for _, k := range d.Dead {
			kinds = append(kinds, fmt.Sprintf("%d %s", k.Count, cmp.Or(strings.TrimSpace(k.Stage+" "+k.Reason), "of older versions")))
		}
		s.add("dead-letters", "Look at tierctl dead, mend the causes, then retry or drop.", "%s: %s.",
			count(d.DeadTotal, "dead letter waits", "dead letters wait"), strings.Join(kinds, ", "))
	}
	s.lost(d)
	s.warnings(d)
	if d.Paused {
		s.add("paused", "Resume them with tierctl resume.", "Moves are paused.")
	}
	return s
}

// nobody names the services of which none lives.
func (s *sentences) nobody(d client.Status) {
	for _, p := range []struct{ program, then string }{
		{"relocator", "nothing moves, and no old copy is released"}, {"committer", "no move is committed"},
	} {
		lives := slices.ContainsFunc(d.Services, func(v client.Service) bool { return v.Program == p.program && v.Alive })
		if !lives {
			s.add("no-"+p.program, "Start a "+p.program+", or see its log.", "No %s lives: %s.", p.program, p.then)
		}
	}
}

// services names what living services miss.
func (s *sentences) services(d client.Status) {
	for _, v := range d.Services {
		for _, check := range slices.Sorted(maps.Keys(v.Missing)) {
			if v.Alive {
				s.add("not-ready", "Mend what it names; it goes on by itself.", "The %s %s is not ready: %s: %s.", v.Program, v.ID, check, v.Missing[check])
			}
		}
	}
}

// lost names services that have ended without saying so, unless another one of the program has been started since.
func (s *sentences) lost(d client.Status) {
	for _, v := range d.Services {
		replaced := slices.ContainsFunc(d.Services, func(o client.Service) bool {
			return o.Program == v.Program && o.Alive && o.StartedAt != nil && startedAfter(d.At, *o.StartedAt, v.AgeMS)
		})
		if !v.Alive && !replaced {
			s.add("lost", "Start it again. If you have removed it, do nothing: the list drops it after an hour.",
				"The %s %s has not reported itself for %s.", v.Program, v.ID, (time.Duration(v.AgeMS) * time.Millisecond).Truncate(time.Second))
		}
	}
}

// startedAfter reports whether a start was later than ageMS before now.
func startedAfter(now, start string, ageMS int64) bool {
	n, err := time.Parse(time.RFC3339Nano, now)
	t, err2 := time.Parse(time.RFC3339Nano, start)
	return err == nil && err2 == nil && n.Sub(t).Milliseconds() < ageMS
}

// warnings names what living services warn of, each once, and services of different versions.
func (s *sentences) warnings(d client.Status) {
	said, versions := map[string]bool{}, map[string]bool{}
	for _, v := range d.Services {
		if !v.Alive {
			continue
		}
		versions[cmp.Or(v.Version, "an older one")] = true
		for _, check := range slices.Sorted(maps.Keys(v.Warnings)) {
			if text := v.Warnings[check]; !said[text] {
				said[text] = true
				s.add("warning", "Mend what it names.", "The %s %s warns: %s: %s.", v.Program, v.ID, check, text)
			}
		}
	}
	if len(versions) > 1 {
		s.add("versions", "Finish the upgrade.", "Services of different versions run: %s.", strings.Join(slices.Sorted(maps.Keys(versions)), ", "))
	}
}

// after is text after a separator, "" where there is no text.
func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
