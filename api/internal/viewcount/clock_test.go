package viewcount_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/internal/viewcount"
)

const year = 365 * 24 * hour

// machine is a machine whose clock the test sets.
type machine struct {
	t   *testing.T
	dir string
	r   viewcount.Reading
}

func newMachine(t *testing.T) *machine {
	return &machine{t, t.TempDir(), viewcount.Reading{Wall: noon, Boot: "one", Up: 100 * hour}}
}

func (m *machine) clock() *viewcount.Clock {
	return viewcount.NewClock(m.dir, 24*hour, func() viewcount.Reading { return m.r })
}

// goes lets time pass, in which the clock is also set.
func (m *machine) goes(passes, set time.Duration) {
	m.r.Wall, m.r.Up = m.r.Wall.Add(passes+set), m.r.Up+passes
}

func (m *machine) restarts(off, set time.Duration) {
	m.r.Wall, m.r.Boot, m.r.Up = m.r.Wall.Add(off+set), m.r.Boot+"+", time.Minute
}

func (m *machine) wants(c *viewcount.Clock, words string) {
	m.t.Helper()
	now, _, err := c.Now()
	switch {
	case words == "" && (err != nil || !now.Equal(m.r.Wall)):
		m.t.Errorf("%v, %v", now, err)
	case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
		m.t.Errorf("%q is not in: %v", words, err)
	}
}

func TestAClockThatWasSetIsRefusedUntilItIsRightAgainOrAccepted(t *testing.T) {
	for _, by := range []time.Duration{hour, -hour, year, -year} {
		for _, restarts := range []bool{false, true} { // of the counter
			m := newMachine(t)
			c := m.clock()
			m.wants(c, "")
			m.goes(10*time.Second, by)
			if restarts {
				c = m.clock()
			}
			m.wants(c, "the clock was set by "+by.String())
			m.goes(10*time.Second, 0)
			m.wants(c, "if it is right now, remove "+filepath.Join(m.dir, "clock"))
			m.goes(10*time.Second, -by)
			m.wants(c, "")
			m.goes(10*time.Second, by)
			m.wants(c, "the clock was set")
			if err := os.Remove(filepath.Join(m.dir, "clock")); err != nil {
				t.Fatal(err)
			}
			if now, accepted, err := c.Now(); err != nil || !accepted || !now.Equal(m.r.Wall) {
				t.Errorf("set by %v and accepted: %v, %v, %v", by, now, accepted, err)
			}
			m.goes(hour, 0)
			m.wants(c, "")
		}
	}
}

func TestTimeThatHasPassedIsNoClockThatWasSet(t *testing.T) {
	m := newMachine(t)
	c := m.clock()
	m.wants(c, "")
	m.goes(100*hour, 14*time.Minute) // a time server corrects it in the course of days
	m.wants(c, "")
	m.goes(100*hour, -14*time.Minute)
	m.wants(m.clock(), "") // the counter was off for days
	m.restarts(20*hour, 0)
	m.wants(m.clock(), "")
	m.restarts(100*hour, 0)
	m.wants(m.clock(), "until it has been up for 15m0s")
	m.goes(15*time.Minute, 0)
	m.wants(m.clock(), "")
}

func TestAClockThatIsWrongAfterARestartOfTheMachineIsRefused(t *testing.T) {
	for _, by := range []time.Duration{-hour, -year, year} {
		m := newMachine(t)
		m.wants(m.clock(), "")
		m.restarts(time.Minute, by)
		c := m.clock()
		m.wants(c, "no count is posted")
		m.goes(time.Minute, -by)
		m.wants(c, "")
	}
}

func TestCountsOfTheFutureBecomeThoseOfThePast(t *testing.T) {
	f := folder{t, t.TempDir()}
	ahead := noon.Add(year)
	l, _ := f.openAt(ahead)
	f.view(ahead, 7, "a")
	f.view(ahead.Add(hour), 8, "a")
	f.read(l, ahead.Add(3*hour)) // both are files of counts
	// The clock is right again, and somebody has accepted it.
	l, w := f.openAt(noon)
	f.read(l, noon)
	f.view(noon, 7, "b")
	f.read(l, noon.Add(time.Minute))
	check(t, "at noon", w, changes{7: 2, 8: 1})
	l, w = f.openAt(noon.Add(hour))
	f.read(l, noon.Add(hour))
	check(t, "after a restart", w, changes{7: 2, 8: 1})
	if err := l.Tidy(); err != nil {
		t.Fatal(err)
	}
	for _, name := range f.files() {
		if strings.Contains(name, "-2027-") {
			t.Errorf("a log of the future is left: %s", name)
		}
	}
	f.read(l, noon.Add(26*hour))
	check(t, "when a day has passed", w, changes{7: 0, 8: 0})
}
