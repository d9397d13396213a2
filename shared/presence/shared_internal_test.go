package presence

import (
	"strings"
	"testing"
	"time"
)

// Each word is a report of this process, which replaces its own report or another one's, and the time since its last report.
func TestAnotherProcessWithTheSameIDIsNoticedAndARestartOrAPauseIsNot(t *testing.T) {
	for _, c := range []struct{ what, reports, found string }{
		{"alone", "own:0s own:5s own:5s own:5s", "----"},
		{"a restart with the same id", "other:0s own:5s own:5s", "---"},
		{"a restart, and a report of the dead process that was under way", "other:0s other:5s own:5s own:5s own:5s", "-----"},
		{"another process", "own:0s other:5s other:5s other:5s", "--++"},
		{"another process that was there first", "other:0s other:5s other:5s", "--+"},
		{"another process that reports more rarely", "own:0s other:5s own:5s other:5s own:5s own:5s other:5s", "---++++"},
		{"the other one ends", "own:0s other:5s other:5s own:5s own:5s own:5s own:5s", "--+++--"},
		{"the other one ends, and this one reports often", "own:0s other:5s other:5s own:1s own:1s own:1s own:1s own:5s own:5s own:1s", "--+++++++-"},
		{"this one is paused", "own:0s own:5s own:1h own:5s", "----"},
		{"this one is paused while the other one reports", "own:0s other:5s other:5s other:1h other:5s", "--+++"},
		{"the other one is paused", "own:0s other:5s other:5s own:5s own:5s own:5s other:5s other:5s", "--+++--+"},
		{"this one is paused after it has noticed the other one", "own:0s other:5s other:5s own:1h own:5s own:5s", "--+++-"},
	} {
		t.Run(c.what, func(t *testing.T) {
			var s sharedID
			now, found := time.Now(), ""
			for word := range strings.FieldsSeq(c.reports) {
				whose, since, _ := strings.Cut(word, ":")
				d, err := time.ParseDuration(since)
				if err != nil {
					t.Fatal(err)
				}
				now = now.Add(d)
				s.reported(whose == "other", now)
				found += map[bool]string{false: "-", true: "+"}[s.is]
			}
			if found != c.found {
				t.Errorf("%s: %s, want %s", c.reports, found, c.found)
			}
		})
	}
}
