package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestOnlyAGroupThatDoesNothingWhileTheStreamGrowsBeyondItIsUnconsumed(t *testing.T) {
	type look struct {
		since     time.Duration // since the last look
		newest    string        // of the stream
		delivered string        // of the group
		pending   int64
	}
	const every = 10 * time.Second
	repeat := func(n int, l look) (all []look) {
		for range n {
			all = append(all, l)
		}
		return all
	}
	growing := func(n int, of func(i int) look) (all []look) {
		for i := range n {
			all = append(all, of(i))
		}
		return all
	}
	for name, c := range map[string]struct {
		looks []look
		want  bool
	}{
		"nobody has ever read":           {repeat(7, look{every, "5-0", "0-0", 0}), true},
		"nobody settles what was read":   {repeat(7, look{every, "5-0", "3-0", 2}), true},
		"not for long yet":               {repeat(6, look{every, "5-0", "0-0", 0}), false},
		"the stream goes on growing":     {growing(7, func(i int) look { return look{every, fmt.Sprintf("%d-0", 5+i), "3-0", 0} }), true},
		"it has read everything":         {repeat(100, look{every, "5-0", "5-0", 0}), false},
		"it has read everything, slowly": {repeat(100, look{every, "5-0", "5-0", 3}), false},
		"it reads":                       {growing(100, func(i int) look { return look{every, "1000-0", fmt.Sprintf("%d-0", i), 0} }), false},
		"it settles":                     {growing(100, func(i int) look { return look{every, "1000-0", "500-0", int64(200 - i)} }), false},
		"an entry comes after a long rest": {append(repeat(100, look{every, "5-0", "5-0", 0}), look{every, "6-0", "5-0", 0},
			look{every, "6-0", "6-0", 0}), false},
		"Redis was away, or this process was paused": {append(repeat(2, look{every, "5-0", "0-0", 0}), look{time.Hour, "5-0", "0-0", 0}), false},
		"it goes on after a rest":                    {append(repeat(7, look{every, "5-0", "0-0", 0}), look{every, "5-0", "1-0", 1}), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := otherGroups{after: unconsumedAfter}
			now := time.Now()
			for _, l := range c.looks {
				now = now.Add(l.since)
				s.look([]redis.XInfoGroup{
					{Name: "own", LastDeliveredID: "0-0"},
					{Name: "audit", LastDeliveredID: l.delivered, Pending: l.pending},
				}, "own", l.newest, now, every)
			}
			got := fmt.Sprint(s.unconsumed())
			if want := map[bool]string{true: "[audit]", false: "[]"}[c.want]; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

func TestTheReportOfGroupsNamesSomeWithTheirCommands(t *testing.T) {
	if err := CheckConsumed(nil); err != nil {
		t.Error(err)
	}
	var all []Group
	for i := range 7 {
		all = append(all, Group{"tierflow:{p00}:views", fmt.Sprintf("g %d", 6-i)})
	}
	const want = `a consumer group that nobody consumes keeps its stream from being trimmed, and Redis fills up: consume it, or remove it with ` +
		`XGROUP DESTROY tierflow:{p00}:views "g 0", XGROUP DESTROY tierflow:{p00}:views "g 1", XGROUP DESTROY tierflow:{p00}:views "g 2", ` +
		`XGROUP DESTROY tierflow:{p00}:views "g 3", XGROUP DESTROY tierflow:{p00}:views "g 4" (and 2 more groups)`
	if err := CheckConsumed(all); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}
