package e2e_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestTheStatusNamesEachServiceThatIsKilled(t *testing.T) {
	w := start(t, options{})
	// The servers of the tests may deserve warnings, so only these kinds are looked at.
	waitFor := func(what string, want ...string) {
		t.Helper()
		testserver.Eventually(t, what, patience, func() error {
			s, err := w.Client().Status(t.Context())
			if err != nil {
				return err
			}
			kinds := []string{}
			for _, a := range s.Attention {
				if slices.Contains([]string{"no-relocator", "no-committer", "not-ready", "lost", "versions"}, a.Kind) {
					kinds = append(kinds, a.Kind)
				}
			}
			alive := 0
			for _, v := range s.Services {
				if v.Alive {
					alive++
				}
			}
			if !slices.Equal(kinds, want) || len(want) == 0 && alive != 3 {
				return fmt.Errorf("%v, %d live: %+v", kinds, alive, s)
			}
			return nil
		})
	}
	waitFor("all services live")
	w.must("kill the committer", w.Committers[0].Kill())
	waitFor("the committer is missed", "no-committer", "lost")
	w.must("kill the relocator", w.Relocators[0].Kill())
	waitFor("both are missed", "no-relocator", "no-committer", "lost", "lost")
	w.must("start the relocator", w.Relocators[0].Start(t.Context()))
	w.must("start the committer", w.Committers[0].Start(t.Context()))
	waitFor("all services live again")
}
