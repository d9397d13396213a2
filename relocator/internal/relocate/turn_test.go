package relocate_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/item"
)

// While moves take all slots, others wait for one. By the time that they are called, newer events have settled in place.
func TestEventsThatAreSupersededWhileTheyWaitForASlotHoldUpNoMove(t *testing.T) {
	w := relocatortest.New(t)
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	var begun atomic.Int64
	w.FS.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.WriteTemp {
			begun.Add(1)
			<-released
		}
		return nil
	}
	const moving, waiting = 3, 12
	bodies := map[int][]byte{}
	for id := 1; id <= moving+waiting+1; id++ {
		bodies[id] = w.Item(id, fmt.Sprintf("f%d", id))
	}
	w.Run()
	t.Cleanup(release) // before the workers are stopped
	var ids []string
	for id := 1; id <= moving+waiting; id++ {
		if id == moving+1 {
			w.Eventually("all slots that one tier may have are taken", func() error {
				if n := begun.Load(); n != moving {
					return fmt.Errorf("%d moves", n)
				}
				return nil
			})
		}
		ids = append(ids, w.Post(id, 2000))
	}
	left(w, ids...)
	for id := moving + 1; id <= moving+waiting; id++ {
		w.Post(id, 12)
	}
	last := moving + waiting + 1
	w.Post(last, 2000)
	w.Eventually("the newer counts are written", func() error {
		for id := moving + 1; id <= moving+waiting; id++ {
			if r := w.Row(id); r.ViewCount != item.Count(12) {
				return fmt.Errorf("%+v", r)
			}
		}
		return nil
	})
	release()
	w.Settled()
	for id := 1; id <= moving; id++ {
		w.Lies(id, "gold", bodies[id])
	}
	w.Lies(last, "gold", bodies[last])
}
