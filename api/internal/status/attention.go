package status

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/state"
)

// long is how old the oldest entry of a stage may be before it waits for a human.
const long = 10 * time.Minute

// sentences collects what waits for a human.
type sentences []client.Attention

func (s *sentences) add(kind, do, format string, args ...any) {
	*s = append(*s, client.Attention{Kind: kind, What: fmt.Sprintf(format, args...), Do: do})
}

// Attention says what of a document waits for a human, worst first. blaming has the relocators that report a tier which cannot be
// used.
func Attention(d client.Status, blaming map[string]bool) []client.Attention {
	s := sentences{}
	s.nobody(d)
	s.services(d, blaming)
	s.tiers(d)
	for _, u := range d.Unreachable {
		s.add("unreachable", "Start a relocator that reaches them (TIERFLOW_TIERS).", "Entries wait for a relocator that reaches %s: none does.",
			strings.Join(u.Tiers, " and "))
	}
	s.old(d)
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

// streams are the streams of the stages.
var streams = map[string]string{state.StageRelocate: "views", state.StageCommit: "relocated", state.StageRelease: "committed"}

// old names the stages whose oldest entry has waited for long.
func (s *sentences) old(d client.Status) {
	for _, st := range d.Stages {
		age := time.Duration(st.OldestMS) * time.Millisecond
		why, waits := "", time.Duration(0)
		if w := d.OldestWait; w != nil && w.Stream == streams[st.Stage] {
			waits = between(w.Since, d.At)
			why = fmt.Sprintf(": item %s waits (%s)%s", w.CID, w.Reason, after(": ", w.Error))
		}
		if !d.Paused && (late(st, age, d.Waiting[state.WaitingGrace]) || waits >= long) {
			s.add("old-entry", "Look at tierctl waiting, and at what /readyz of the relocators and the committers names.",
				"The oldest of %s at the stage %s has waited for %s%s.", count(st.Unsettled, "entry", "entries"), st.Stage,
				max(age, waits).Truncate(time.Minute), why)
		}
	}
}

// late reports whether a stage's oldest entry is late. A release waits for its grace, and for as long again after a relocator was
// started. What waits for the grace alone is never late.
func late(st client.Stage, age time.Duration, inGrace int64) bool {
	if st.Stage != state.StageRelease {
		return age >= long
	}
	return age >= long+2*time.Duration(st.GraceMS)*time.Millisecond && st.Unsettled > inGrace
}

// between is the time from one moment to a later one, as JSON has them.
func between(from, to string) time.Duration {
	a, err := time.Parse(time.RFC3339Nano, from)
	b, err2 := time.Parse(time.RFC3339Nano, to)
	if err != nil || err2 != nil {
		return 0
	}
	return b.Sub(a)
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

// services names what living services miss. What a relocator misses of tiers is in the sentences about tiers, where it blames one.
func (s *sentences) services(d client.Status, blaming map[string]bool) {
	for _, v := range d.Services {
		for _, check := range slices.Sorted(maps.Keys(v.Missing)) {
			if v.Alive && (check != "tiers" || !blaming[v.ID]) {
				s.add("not-ready", "Mend what it names; it goes on by itself.", "The %s %s is not ready: %s: %s.", v.Program, v.ID, check, v.Missing[check])
			}
		}
	}
}

// lost names services that have ended without saying so, unless another one of the program has been started since.
func (s *sentences) lost(d client.Status) {
	for _, v := range d.Services {
		replaced := slices.ContainsFunc(d.Services, func(o client.Service) bool {
			return o.Program == v.Program && o.Alive && o.StartedAt != nil && between(*o.StartedAt, d.At).Milliseconds() < v.AgeMS
		})
		if !v.Alive && !replaced {
			s.add("lost", "Start it again. If you have removed it, do nothing: the list drops it after an hour.",
				"The %s %s has not reported itself for %s.", v.Program, v.ID, (time.Duration(v.AgeMS) * time.Millisecond).Truncate(time.Second))
		}
	}
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
	return humanize.Comma(n) + " " + many
}
