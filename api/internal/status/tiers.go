package status

import (
	"maps"
	"slices"

	"github.com/dustin/go-humanize"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// States of a tier beside those that relocators report.
const (
	unknown  = "unknown"  // no relocator reports it
	draining = "draining" // it is well, and its level gives everything away
)

// tiers puts what relocators report beside the levels. Without levels it lists what is reported, by name.
func tiers(levels []policy.Level, reported map[string]state.Tier) []client.Tier {
	list := []client.Tier{}
	if levels == nil {
		for _, name := range slices.Sorted(maps.Keys(reported)) {
			levels = append(levels, policy.Level{Name: name})
		}
	}
	for _, l := range levels {
		one := client.Tier{Level: l.Name, Path: l.Path, State: unknown, Reason: "no relocator reports it"}
		if t, ok := reported[l.Name]; ok {
			one = describeTier(t)
			one.Path = l.Path
			if l.State == policy.Draining && t.State == state.TierOK {
				one.State = draining
			}
		}
		list = append(list, one)
	}
	return list
}

func describeTier(t state.Tier) client.Tier {
	since := event.FormatTime(t.Since)
	one := client.Tier{Level: t.Level, State: t.State, Reason: t.Reason, Since: &since, WorkerID: t.Worker, Disagree: t.Disagree,
		Waiting: int64(t.Waiting)}
	if t.TotalBytes > 0 {
		age := t.FiguresAge.Milliseconds()
		one.TotalBytes, one.UsedBytes, one.FreeBytes, one.FiguresAgeMS = &t.TotalBytes, &t.UsedBytes, &t.FreeBytes, &age
	}
	if t.TotalInodes > 0 {
		one.TotalInodes, one.FreeInodes = &t.TotalInodes, &t.FreeInodes
	}
	return one
}

// blaming returns the living relocators that report a tier which cannot be used, or is suspect.
func blaming(services []state.Service) map[string]bool {
	found := map[string]bool{}
	for _, v := range services {
		for _, t := range v.Tiers {
			if v.Alive && t.State != state.TierOK && t.State != state.TierFull {
				found[v.ID] = true
			}
		}
	}
	return found
}

// tierStates are the states of tiers that a human ends, worst first. reason is that of entries that wait for such a tier.
var tierStates = []struct{ state, reason, is, do string }{
	{state.TierHanging, "tier-hanging", "hangs", "See the kernel's log of that host: a disk or its controller does not answer."},
	{state.TierFailing, "tier-failing", "cannot be written to", "See the kernel's log of that host; mend or replace the disk."},
	{state.TierRefused, "", "is refused", "Mount the right disk there, or mend what it names."},
	{state.TierAway, "tier-away", "is away", "Mount its disk."},
	{state.TierNoIdentity, "", "was never made", "Run relocator init-tiers."},
	{state.TierReadOnly, "", "is read-only", "See the kernel's log of that host for an error of the disk; then remount it."},
	{state.TierFull, "tier-full", "is full", "Make room on it, or raise the lowest count of its level, so that less belongs there."},
	{state.TierSuspect, "", "is suspect", "See the kernel's log of that host. The suspicion ends with the next move that succeeds there."},
	{unknown, "", "is unknown", "Start a relocator that reaches it (TIERFLOW_TIERS)."},
}

// tiers names the tiers that wait for a human, and what waits for a tier of which no relocator tells the name.
func (s *sentences) tiers(d client.Status) {
	reports := slices.ContainsFunc(d.Tiers, func(t client.Tier) bool { return t.State != unknown })
	for _, of := range tierStates {
		named := false
		for _, t := range d.Tiers {
			if t.State == of.state && (t.State != unknown || reports) {
				named = true
				s.add("tier", of.do, "%s.", sentence(t, of.is))
			}
		}
		if n := d.Waiting[of.reason]; n > 0 && !named {
			s.add("tier", of.do, "%s for a tier that %s.", count(n, "entry waits", "entries wait"), of.is)
		}
	}
}

// sentence says how a tier is, what waits for it, and who says so, without the full stop.
func sentence(t client.Tier, is string) string {
	text := t.Level + " " + is
	switch {
	case t.State == state.TierFull && t.Waiting > 0:
		text = count(t.Waiting, "move to "+t.Level+" waits", "moves to "+t.Level+" wait") + ": it " + is
	case t.Waiting > 0:
		text = count(t.Waiting, "entry waits", "entries wait") + " for " + t.Level + ": it " + is
	}
	switch {
	case t.State == state.TierFull && t.FreeBytes != nil:
		text += ", " + humanize.IBytes(uint64(max(*t.FreeBytes, 0))) + " free"
		if t.FreeInodes != nil && *t.FreeInodes == 0 {
			text += " and no inode left"
		} else if *t.FreeBytes > *t.TotalBytes/100 {
			text += ", which is too little for them"
		}
	default:
		text += after(": ", t.Reason)
	}
	if t.Disagree {
		text += ". The relocator " + t.WorkerID + " says so, and another one does not"
	}
	return text
}
