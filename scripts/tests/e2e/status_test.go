package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/item"
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

func TestTheStatusNamesATierThatIsAwayAndHowManyWaitForItAtAllRelocators(t *testing.T) {
	w := start(t, options{relocators: 2})
	const n = 20
	waitFor := func(what, states, sentence string) {
		t.Helper()
		testserver.Eventually(t, what, patience, func() error {
			s, err := w.Client().Status(t.Context())
			found, said := "", ""
			for _, tier := range s.Tiers {
				found += tier.Level + " " + tier.State + " "
				if tier.State == "ok" && (tier.FreeBytes == nil || *tier.FreeBytes <= 0) {
					err = errors.Join(err, errors.New(tier.Level+" has no figures"))
				}
			}
			for _, a := range s.Attention {
				if a.Kind == "tier" {
					said += a.What
				}
			}
			if err == nil && (strings.TrimSpace(found) != states || !strings.HasPrefix(said, sentence) || sentence == "" && said != "") {
				err = fmt.Errorf("%s, %q", found, said)
			}
			return err
		})
	}
	waitFor("all tiers are well", "bronze ok silver ok gold ok", "")
	for id := item.ID(1); id <= n; id++ {
		w.add(id, "bronze", 1000)
	}
	gold := w.tier("gold")
	w.must("unmount", os.Rename(gold, gold+".unmounted"))
	for id := item.ID(1); id <= n; id++ {
		w.post(id, 5000)
	}
	waitFor("gold is away", "bronze ok silver ok gold away", fmt.Sprint(n, " entries wait for gold: it is away: "))
	w.must("mount", os.Rename(gold+".unmounted", gold))
	waitFor("gold is back", "bronze ok silver ok gold ok", "")
	w.checkSettled()
	testserver.Eventually(t, "the moves have a rate", patience, func() error {
		s, err := w.Client().Status(t.Context())
		if err != nil || s.Rates.Moves <= 0 || s.Rates.Bytes <= 0 || s.Rates.Views <= 0 {
			return fmt.Errorf("%+v, %w", s.Rates, err)
		}
		return nil
	})
}
