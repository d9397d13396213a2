package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/tierflow/tierflow/api/client"
)

func showStatus(t *table, s client.Status) {
	t.row("TIER", "STATE", "FOR", "USED", "SIZE", "FREE", "WAITING", "PATH")
	for _, one := range s.Tiers {
		t.row(one.Level, one.State, lasts(one.Since, s.At), share(one.UsedBytes, one.TotalBytes), size(one.TotalBytes), size(one.FreeBytes),
			humanize.Comma(one.Waiting), one.Path)
	}
	t.row()
	t.row("PROGRAM", "ID", "VERSION", "STATE", "LAST SEEN")
	for _, v := range s.Services {
		status := "ready"
		switch {
		case !v.Alive:
			status = "gone"
		case !v.Ready:
			status = "not ready"
		}
		t.row(v.Program, v.ID, v.Version, status, ago(v.AgeMS))
	}
	t.row()
	t.row("STAGE", "UNSETTLED", "OLDEST")
	for _, st := range s.Stages {
		t.row(st.Stage, humanize.Comma(st.Unsettled), age(time.Duration(st.OldestMS)*time.Millisecond))
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Waiting)) {
		t.row("waits: "+reason, humanize.Comma(s.Waiting[reason]))
	}
	t.row("dead letters", humanize.Comma(s.DeadTotal))
	for _, d := range s.Dead {
		t.row("dead: "+strings.TrimSpace(d.Stage+" "+d.Reason), humanize.Comma(d.Count))
	}
	t.note("last minute: %s views/s, %s moves/s, %s/s", humanize.CommafWithDigits(s.Rates.Views, 1), humanize.CommafWithDigits(s.Rates.Moves, 1),
		humanize.IBytes(uint64(max(s.Rates.Bytes, 0))))
	for i, a := range s.Attention {
		t.note("%d. %s %s", i+1, plain(a.What), plain(a.Do))
	}
	if len(s.Attention) == 0 {
		t.note("nothing waits for a human")
	}
}

// size is a number of bytes, "-" where it is unknown.
func size(bytes *int64) string {
	if bytes == nil {
		return "-"
	}
	return humanize.IBytes(uint64(max(*bytes, 0)))
}

// share is a part of a whole in percent.
func share(part, whole *int64) string {
	if part == nil || whole == nil || *whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(*part)/float64(*whole))
}

// lasts is the time since a moment until now, as the api has them.
func lasts(since *string, now string) string {
	if since == nil {
		return "-"
	}
	from, err := time.Parse(time.RFC3339Nano, *since)
	to, err2 := time.Parse(time.RFC3339Nano, now)
	if err != nil || err2 != nil {
		return "-"
	}
	return age(to.Sub(from))
}

// age is a duration in words, such as 12 minutes; "-" for none.
func age(d time.Duration) string {
	if d < time.Second {
		return "-"
	}
	now := time.Now()
	return strings.TrimSpace(humanize.RelTime(now.Add(-d), now, "", ""))
}

// ago is how long ago something was.
func ago(ms int64) string {
	if ms < 1000 {
		return "now"
	}
	return age(time.Duration(ms)*time.Millisecond) + " ago"
}
