package stream_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAGroupThatNobodyConsumesIsReportedUntilItIsRemoved(t *testing.T) {
	w := newWorld(t)
	handle, got := w.handler()
	r := w.run(stream.Options{Handle: handle, Slots: 4, Keep: 1, Unconsumed: 300 * time.Millisecond})
	w.settleAll(got, w.add(1))
	for group, start := range map[string]string{"new": "$", "audit": "0"} {
		if err := w.rdb.XGroupCreate(t.Context(), w.stream, group, start).Err(); err != nil {
			t.Fatal(err)
		}
	}
	reports := func(what string, want ...string) {
		t.Helper()
		testserver.Eventually(t, what, soon, func() error {
			var names []string
			for _, g := range r.Unconsumed() {
				names = append(names, g.Name)
			}
			if fmt.Sprint(names) != fmt.Sprint(want) {
				return fmt.Errorf("%v are reported", names)
			}
			return nil
		})
	}
	reports("the group that has not read the first entry", "audit")
	w.settleAll(got, w.add(10))
	reports("both groups", "audit", "new")
	r.upkeeps(2)
	if n := w.rdb.XLen(t.Context(), w.stream).Val(); n != 11 {
		t.Fatalf("%d entries: the groups do not stop trimming", n)
	}
	_, commands, _ := strings.Cut(stream.CheckConsumed(r.Unconsumed()).Error(), "remove it with ")
	for command := range strings.SplitSeq(commands, ", ") {
		var args []any
		for _, a := range strings.Fields(command) {
			args = append(args, a)
		}
		if err := w.rdb.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
	reports("none")
	r.Retire()
	if found := r.Unconsumed(); found != nil {
		t.Errorf("a consumer that has retired reports %v", found)
	}
}
