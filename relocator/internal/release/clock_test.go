package release_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// The clock is one in which the item moves, and another one from the start of the releaser on.
func TestTheGraceNeitherShrinksNorLastsForEverWhenTheClockOfRedisIsSet(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, c := range map[string]struct{ moves, releases time.Duration }{
		"an hour ahead": {0, time.Hour}, "an hour back": {time.Hour, 0},
		"a year ahead": {0, year}, "a year back": {year, 0},
	} {
		t.Run(name, func(t *testing.T) {
			url, set := testserver.ClockRedis(t)
			t.Setenv("TIERFLOW_TEST_REDIS_URL", url)
			w := relocatortest.New(t)
			w.Grace = 2 * time.Second
			set(c.moves)
			body := w.Item(1, "a")
			w.Relocator("r1")
			w.Committer()
			w.Post(1, 1500)
			w.Eventually("the row is changed", func() error {
				if level := w.Row(1).Level; level != "silver" {
					return fmt.Errorf("it names %s", level)
				}
				return nil
			})
			set(c.releases)
			started := time.Now()
			w.Releaser("r1")
			w.Eventually("the old copy is gone", func() error {
				if _, err := os.Stat(w.Roots["bronze"] + "/a"); err == nil {
					return fmt.Errorf("it is there")
				}
				return nil
			})
			if stayed := time.Since(started); stayed < w.Grace {
				t.Errorf("the old copy stayed for %v only", stayed)
			}
			w.Settled()
			w.Lies(1, "silver", body)
		})
	}
}
