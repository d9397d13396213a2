package main

import (
	"slices"
	"testing"

	"github.com/tierflow/tierflow/api/client"
)

func TestAnItemIsExplainedInSentences(t *testing.T) {
	to, at, bronze := int64(1999), "2026-12-01T00:00:00Z", "bronze"
	const since = "2026-11-30T00:00:00Z"
	for _, c := range []struct {
		decision *client.Decision
		want     []string
	}{
		{nil, []string{"It was never counted, moved or pinned, so it stays until its first count."}},
		{&client.Decision{Target: "silver", Wanted: "bronze", Reason: "hysteresis", Count: 900, FromCount: 800, ToCount: &to}, []string{
			"Its count is 900, which calls for bronze.", "It stays: its count is not low enough to leave that level.",
			"Another count would change that below 800, and from 2000 on."}},
		{&client.Decision{Target: "silver", Wanted: "bronze", Reason: "residency", Count: 9, ToCount: &to, ReviewAt: &at}, []string{
			"Its count is 9, which calls for bronze.", "It stays: it came there a short while ago, and does not go down yet.",
			"That ends at 2026-12-01T00:00:00Z.", "Another count would change that from 2000 on."}},
		{&client.Decision{Target: "gold", Wanted: "gold", Reason: "count", Count: 2500, FromCount: 2000}, []string{
			"Its count is 2500, which calls for gold.", "It is to move to gold: its count is in the range of that level.",
			"Another count would change that below 2000."}},
		{&client.Decision{Target: "silver", Wanted: "bronze", Reason: "observe", Count: 9, Enforced: &bronze}, []string{
			"Its count is 9, which calls for bronze.", "It stays, because the policy only observes: otherwise it would move to bronze.",
			"No other count would change that."}},
	} {
		got := explainItem(client.Item{CID: 7, Filename: "g.mp4", Level: "silver", UpdateTime: since, Decision: c.decision})
		if want := append([]string{"Item 7, g.mp4, is on silver since " + since + "."}, c.want...); !slices.Equal(got, want) {
			t.Errorf("%q\nwant\n%q", got, want)
		}
	}
	got := explainMoves([]client.Move{{UpdateTime: since, OldLevel: "gold", NewLevel: "silver", ViewCount: 5, Reason: "draining"}})
	if want := []string{"At " + since + " it moved from gold to silver with the count 5, by the rule draining."}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := explainMoves(nil); !slices.Equal(got, []string{"It has never moved."}) {
		t.Errorf("%q", got)
	}
}
