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
	levels, err := s.Catalog.Levels(c.Request().Context())
	if err != nil {
		return err
	}
	counts := s.sizes.get(c.Request().Context(), s.Registry.Counts)
	list := client.Levels{Levels: []client.Level{}}
	for _, l := range levels {
		a := client.Level{Level: l.Name, MinCounts: l.Min, Path: l.Path, TierID: l.TierID}
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

// putLevels replaces the policy. Items that the change concerns are re-evaluated in the background.
func (s *Server) putLevels(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	var in struct {
		Levels []json.RawMessage `json:"levels"` // as client.Levels
	}
	if err := decode(c.Request(), &in); err != nil {
		return err
	}
	var levels []policy.Level
	var errs []error
	for i, object := range in.Levels {
		// tier_id and contents are ignored, so that the answer of GET can be sent back.
		var l client.Level
		if err := decodeObject(object, &l, "level", "min_counts", "path"); err != nil {
			return malformed("levels[%d]: %s", i, detail(err))
		}
		level := policy.Level{Name: l.Level, Min: l.MinCounts, Max: policy.Open, Path: l.Path}
		if l.MaxCounts != nil {
			level.Max = *l.MaxCounts
		}
		if len(level.Path) > maxPath {
			errs = append(errs, fmt.Errorf("level %q: its path has more than %d bytes", level.Name, maxPath))
		}
		levels = append(levels, level)
	}
	p, err := policy.New(levels)
	if err = errors.Join(append(errs, err)...); err != nil {
		return fault.New(fault.Unprocessable, "", "", err)
	}
	if err := s.Registry.SetLevels(c.Request().Context(), p); err != nil {
		return err
	}
	s.Lookup.InvalidatePolicy()
	s.sizes.forget()
	s.Reevaluate.LevelsChanged()
	return s.answerLevels(c)
}

// maxPath leaves room for a filename within what Linux takes, and fits the column.
const maxPath = 1024
