package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/policy"
)

type levelAnswer struct {
	Level    string `json:"level"`
	MinCount int64  `json:"min_counts"`
	MaxCount *int64 `json:"max_counts"` // null: no upper end
	Path     string `json:"path"`
	TierID   string `json:"tier_id"`
	Contents *int64 `json:"contents"` // null where counting would take too long
}

type levelsAnswer struct {
	Levels []levelAnswer `json:"levels"`
}

func (s *Server) getLevels(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	return s.answerLevels(c)
}

// answerLevels shows the table as it is, even where somebody has made it invalid by SQL.
func (s *Server) answerLevels(c echo.Context) error {
	levels, err := s.Catalog.Levels(c.Request().Context())
	if err != nil {
		return err
	}
	counts := s.sizes.get(c.Request().Context(), s.Registry.Counts)
	list := levelsAnswer{Levels: []levelAnswer{}}
	for _, l := range levels {
		a := levelAnswer{Level: l.Name, MinCount: l.Min, Path: l.Path, TierID: l.TierID}
		if l.Max != policy.Open {
			a.MaxCount = &l.Max
		}
		if counts != nil {
			n := counts[l.Name]
			a.Contents = &n
		}
		list.Levels = append(list.Levels, a)
	}
	return c.JSON(http.StatusOK, list)
}

// levelSizes remembers how many contents each level has, for a while: it takes MySQL as long as there are contents.
type levelSizes struct {
	mu     sync.Mutex
	until  time.Time
	counts map[string]int64
}

const (
	sizesServe   = 5 * time.Second
	sizesTimeout = 500 * time.Millisecond
)

// get returns nil where it would take too long.
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

// forget has the numbers counted anew.
func (l *levelSizes) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
}

// putLevels replaces the policy. Contents that it concerns are looked at in the background.
func (s *Server) putLevels(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	var in struct {
		Levels []struct {
			Level    *string `json:"level"`
			MinCount *int64  `json:"min_counts"`
			MaxCount *int64  `json:"max_counts"`
			Path     *string `json:"path"`
			TierID   string  `json:"tier_id"`  // ignored, so that what GET answers can be sent back
			Contents *int64  `json:"contents"` // the same
		} `json:"levels"`
	}
	if err := decode(c.Request(), &in); err != nil {
		return err
	}
	var levels []policy.Level
	var errs []error
	for i, l := range in.Levels {
		if l.Level == nil || l.MinCount == nil || l.Path == nil {
			return malformed("levels[%d]: level, min_counts and path must be given; max_counts only where there is an upper end", i)
		}
		level := policy.Level{Name: *l.Level, Min: *l.MinCount, Max: policy.Open, Path: *l.Path}
		if l.MaxCount != nil {
			level.Max = *l.MaxCount
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
