package main

import (
	"context"
	"fmt"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/item"
)

// explainedMoves is how many of its last moves are told of an item.
const explainedMoves = 5

// explain says in sentences where an item is, what its count calls for, what keeps it there, and when that changes.
func explain(ctx context.Context, c *client.Client, v view, id item.ID) error {
	i, err := c.Item(ctx, id)
	if err != nil {
		return err
	}
	h, err := c.History(ctx, id, 0, explainedMoves)
	if err != nil || v.json {
		return err
	}
	for _, line := range append(explainItem(i), explainMoves(h.History)...) {
		if _, err := fmt.Fprintln(v.out, plain(line)); err != nil {
			return err
		}
	}
	return nil
}

func explainItem(i client.Item) []string {
	lines := []string{fmt.Sprintf("Item %d, %s, is on %s since %s.", i.CID, plain(i.Filename), i.Level, i.UpdateTime)}
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	d := i.Decision
	if d == nil {
		say("It was never counted, moved or pinned, so it stays until its first count.")
		return lines
	}
	say("Its count is %d, which calls for %s.", d.Count, d.Wanted)
	why := reasons[d.Reason]
	if why == "" {
		why = d.Reason
	}
	switch {
	case d.Target != i.Level:
		say("It is to move to %s: %s.", d.Target, why)
	case d.Reason == "observe" && d.Enforced != nil:
		say("It stays, because the policy only observes: otherwise it would move to %s.", *d.Enforced)
	default:
		say("It stays: %s.", why)
	}
	if d.ReviewAt != nil {
		say("That ends at %s.", *d.ReviewAt)
	}
	switch {
	case d.FromCount == 0 && d.ToCount == nil:
		say("No other count would change that.")
	case d.FromCount == 0:
		say("Another count would change that from %d on.", *d.ToCount+1)
	case d.ToCount == nil:
		say("Another count would change that below %d.", d.FromCount)
	default:
		say("Another count would change that below %d, and from %d on.", d.FromCount, *d.ToCount+1)
	}
	return lines
}

// reasons say the reasons of decisions in words.
var reasons = map[string]string{
	"pinned":     "it is pinned there",
	"count":      "its count is in the range of that level",
	"hysteresis": "its count is not low enough to leave that level",
	"residency":  "it came there a short while ago, and does not go down yet",
	"readonly":   "a level that it would be on is readonly, and takes nothing in",
	"draining":   "a level that it would be on is draining, and takes nothing in",
}

func explainMoves(moves []client.Move) (lines []string) {
	if len(moves) == 0 {
		return []string{"It has never moved."}
	}
	for _, m := range moves {
		line := fmt.Sprintf("At %s it moved from %s to %s with the count %d", m.UpdateTime, m.OldLevel, m.NewLevel, m.ViewCount)
		if m.Reason != "" {
			line += ", by the rule " + m.Reason
		}
		lines = append(lines, line+".")
	}
	return lines
}
