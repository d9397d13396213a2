package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

func (s *Server) getLevels(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	return s.answerLevels(c)
}

// answerLevels answers with the table as it is, even where it is invalid because somebody changed it by SQL.
func (s *Server) answerLevels(c echo.Context) error {
	levels, observes, err := s.Catalog.LevelsAndMode(c.Request().Context())
	if err != nil {
		return err
	}
	counts := s.sizes.get(c.Request().Context(), s.Registry.Counts)
	list := client.Levels{Levels: []client.Level{}}
	if observes {
		list.Mode = catalog.ModeObserve
	}
	for _, l := range levels {
		a := client.Level{Level: l.Name, MinCounts: l.Min, Path: l.Path, TierID: l.TierID, MinResidency: int64(l.MinResidency / time.Second)}
		if l.Demote.Set {
			a.DemoteCounts = &l.Demote.Count
		}
		if l.State != policy.Active {
			a.State = l.State.String()
		}
		if l.Max != policy.Open {
			a.MaxCounts = &l.Max
		}
		if counts != nil {
			n := counts[l.Name]
			a.Contents = &n
		}
		list.Levels = append(list.Levels, a)
	}
	return c.JSON(http.StatusOK, list)
}

// levelSizes caches how many items each level has. MySQL counts all rows for it, which takes long where there are many.
type levelSizes struct {
	mu     sync.Mutex
	until  time.Time
	counts map[string]int64
}

const (
	sizesServe   = 5 * time.Second
	sizesTimeout = 500 * time.Millisecond
)

// get returns nil where counting takes too long.
func (l *levelSizes) get(ctx context.Context, count func(context.Context) (map[string]int64, error)) map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().After(l.until) {
		ctx, cancel := context.WithTimeout(ctx, sizesTimeout)
		defer cancel()
		counts, err := count(ctx)
		if err != nil {
			counts = nil
		}
		l.counts, l.until = counts, time.Now().Add(sizesServe)
	}
	return l.counts
}

// forget makes the next get count again.
func (l *levelSizes) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
}

// document is client.Levels under a name that can be embedded beside a field Levels.
type document = client.Levels

// putLevels replaces the policy. Items that the change concerns are re-evaluated in the background.
func (s *Server) putLevels(c echo.Context) error {
	p, err := s.readPolicy(c)
	if err != nil {
		return err
	}
	if err := s.Registry.SetLevels(c.Request().Context(), p); err != nil {
		return err
	}
	s.Lookup.InvalidatePolicy()
	s.sizes.forget()
	s.Reevaluate.LevelsChanged()
	return s.answerLevels(c)
}

// readPolicy reads the document of a request.
func (s *Server) readPolicy(c echo.Context) (policy.Policy, error) {
	if _, err := query(c); err != nil {
		return policy.Policy{}, err
	}
	var in struct {
		document
		Levels []json.RawMessage `json:"levels"` // as client.Level
	}
	if err := decode(c.Request(), &in); err != nil {
		return policy.Policy{}, err
	}
	return s.readLevels(c.Request().Context(), in.Levels, in.Mode)
}

// planTime bounds a plan, which reads all items.
const planTime = 5 * time.Minute

// planLevels says what a document would move. It writes nothing.
func (s *Server) planLevels(c echo.Context) error {
	p, err := s.readPolicy(c)
	if err != nil {
		return err
	}
	if err := http.NewResponseController(c.Response()).SetWriteDeadline(time.Now().Add(planTime + writeTimeout)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), planTime)
	defer cancel()
	plan, err := s.Reevaluate.Plan(ctx, p)
	if err != nil {
		return err
	}
	answer := client.Plan{Moves: []client.PlannedMove{}, Levels: []client.PlannedLevel{}}
	for _, f := range plan.Flows {
		answer.Moves = append(answer.Moves, client.PlannedMove{From: f.From, To: f.To, Items: f.Items, Bytes: f.Bytes, Unsized: f.Unsized})
	}
	for _, l := range p.Levels() {
		one := client.PlannedLevel{Level: l.Name}
		if sum := plan.Before[l.Name]; sum != nil {
			one.Items, one.Bytes = sum.Items, sum.Bytes
		}
		if sum := plan.After[l.Name]; sum != nil {
			one.ItemsAfter, one.BytesAfter = sum.Items, sum.Bytes
		}
		answer.Levels = append(answer.Levels, one)
	}
	return c.JSON(http.StatusOK, answer)
}

// readLevels makes a policy of the levels of a document. The error names every problem: of every level that cannot be read,
// or of all levels as a whole.
func (s *Server) readLevels(ctx context.Context, objects []json.RawMessage, mode string) (policy.Policy, error) {
	var levels []policy.Level
	var unread, errs []error
	for i, object := range objects {
		// tier_id and contents are ignored, so that the answer of GET can be sent back.
		var l client.Level
		if err := decodeObject(object, &l, "level", "min_counts", "path"); err != nil {
			unread = append(unread, fmt.Errorf("levels[%d]: %s", i, detail(err)))
			continue
		}
		level := policy.Level{Name: l.Level, Min: l.MinCounts, Max: policy.Open, Path: l.Path, MinResidency: catalog.Residency(l.MinResidency)}
		if l.DemoteCounts != nil {
			level.Demote = policy.Threshold{Count: *l.DemoteCounts, Set: true}
		}
		if l.State != "" {
			state, err := policy.ParseState(l.State)
			if err != nil {
				errs = append(errs, fmt.Errorf("level %q: %w", l.Level, err))
			}
			level.State = state
		}
		if l.MaxCounts != nil {
			level.Max = *l.MaxCounts
		}
		if len(level.Path) > maxPath {
			errs = append(errs, fmt.Errorf("level %q: its path has more than %d bytes", level.Name, maxPath))
		}
		levels = append(levels, level)
	}
	if err := errors.Join(unread...); err != nil {
		return policy.Policy{}, malformed("%v", err)
	}
	observes := mode == catalog.ModeObserve
	if mode != "" && !observes && mode != catalog.ModeEnforce {
		errs = append(errs, fmt.Errorf("there is no mode %q; the modes are %s, %s", mode, catalog.ModeEnforce, catalog.ModeObserve))
	}
	pins, err := s.Registry.Draining(ctx, levels)
	if err != nil {
		return policy.Policy{}, err
	}
	p, err := policy.New(levels)
	if err := errors.Join(append(append(errs, pins...), err)...); err != nil {
		return policy.Policy{}, fault.New(fault.Unprocessable, "", "", err)
	}
	return p.Observing(observes), nil
}

// maxPath leaves room for a filename within what Linux takes, and fits the column.
const maxPath = 1024
