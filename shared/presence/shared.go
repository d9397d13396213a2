package presence

import (
	"time"

	"github.com/tierflow/tierflow/shared/state"
)

// sharedID finds out whether another process uses the id of this one. Every process replaces the report of its id and sees whose
// report it has replaced. So both processes see the other one, and neither must know how old a report is: no clock has a part in it.
//
//   - The first report of a process may replace that of its dead predecessor, and says nothing.
//   - Later another instance's report is one that was written since this process' last one. One alone may have been under way
//     for long, from a process that is dead by now. The second one shows that the other process lives.
//   - It ends when no other report was there for three times the interval. A pause of this process counts as one interval.
type sharedID struct {
	is    bool
	seen  int           // reports of others
	clean time.Duration // since the last of them
	last  time.Time     // the last report of this process
}

// reported notes a report of this process.
func (s *sharedID) reported(another bool, now time.Time) {
	first := s.last.IsZero()
	passed := min(now.Sub(s.last), state.ReportEvery)
	s.last = now
	switch {
	case first:
	case another:
		s.seen++
		s.clean = 0
		s.is = s.is || s.seen > 1
	default:
		s.clean += passed
		if s.clean >= 3*state.ReportEvery {
			s.is, s.seen = false, 0
		}
	}
}
