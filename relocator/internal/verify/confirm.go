package verify

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// confirm checks all suspicions again and reports those that remain; see the package comment. The order is: the row, the
// files, what is in flight, the row and the newest event.
func (r *run) confirm(ctx context.Context) error {
	suspects := r.suspects
	r.suspects = nil
	if len(suspects) == 0 {
		return nil
	}
	if err := r.samePolicy(ctx); err != nil {
		return err
	}
	still, err := r.recheck(ctx, suspects)
	if err != nil {
		return err
	}
	if len(still) == 0 {
		return nil
	}
	now, err := r.lookUp(ctx, still)
	if err != nil {
		return err
	}
	for _, d := range still {
		moving, err := r.inFlight(ctx, d, now)
		if err != nil {
			return err
		}
		if moving {
			r.sum.InFlight++
			continue
		}
		r.sum.Findings++
		action := ""
		if r.o.Repair {
			if action, err = r.repair(ctx, d, now); err != nil {
				return err
			}
		}
		r.o.Report(d.Finding, action)
	}
	return nil
}

// present is what MySQL and Redis say about the suspicions after their files were checked again.
type present struct {
	flying      map[item.ID]bool
	rows        map[item.ID]catalog.Row
	newest      map[item.ID]string // the entry id of the newest event
	deadLetters map[string]bool    // by event id; only for a repair
	swept       map[string]string  // by level: what became of the sweep, "" before it
}

// lookUp reads what is in flight, then the rows, then the newest events.
func (r *run) lookUp(ctx context.Context, still []suspicion) (*present, error) {
	var ids []item.ID
	var events []string
	for _, d := range still {
		if d.ID != 0 {
			ids = append(ids, d.ID)
		}
		if d.state != nil && d.Kind == Unsettled && r.o.Repair {
			events = append(events, d.state.EventID)
		}
	}
	now := &present{newest: map[item.ID]string{}, swept: map[string]string{}}
	var err error
	if len(ids) > 0 {
		if now.flying, err = r.o.Store.InFlight(ctx, ids...); err != nil {
			return nil, err
		}
		if now.rows, err = r.o.Catalog.Rows(ctx, ids); err != nil {
			return nil, err
		}
		states, err := r.o.Store.GetMany(ctx, ids)
		if err != nil {
			return nil, err
		}
		for i, s := range states {
			if s != nil {
				now.newest[ids[i]] = s.EntryID
			}
		}
	}
	if len(events) > 0 {
		now.deadLetters, err = r.o.Store.DeadEvents(ctx, events...)
	}
	return now, err
}

// inFlight tells whether a move or release of the item is under way, or whether its row or newest event has changed since
// the files were checked.
func (r *run) inFlight(ctx context.Context, d suspicion, now *present) (bool, error) {
	if d.ID == 0 {
		return false, nil
	}
	holder, err := r.o.Store.Holder(ctx, d.ID)
	if err != nil {
		return false, err
	}
	return holder != "" || now.flying[d.ID] ||
		d.row.ID != 0 && (changed(d.row, now.rows[d.ID]) || d.entry() != now.newest[d.ID]), nil
}

// suspicion is a finding that the second check has not dropped, with the row and the state that it was compared with. Both
// are empty where it is about no item.
type suspicion struct {
	Finding
	row   catalog.Row
	state *state.State
}

// entry is the id of the newest event's entry; "" where there is no state.
func (d suspicion) entry() string {
	if d.state == nil {
		return ""
	}
	return d.state.EntryID
}

// changed tells whether a move, a release, a count, a rename, a pin or a new registration has changed a row since it was read.
func changed(was, is catalog.Row) bool {
	return was.Generation != is.Generation || was.Level != is.Level || was.Filename != is.Filename || !was.Updated.Equal(is.Updated) ||
		was.Pinned != is.Pinned || !was.PinEnds.Equal(is.PinEnds) || was.CountEntry != is.CountEntry
}

// samePolicy returns an error where the levels have changed since the run began.
func (r *run) samePolicy(ctx context.Context) error {
	now, err := r.o.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if !slices.Equal(now.Levels(), r.policy.Levels()) {
		return fault.New(fault.Conflict, "compare", "", errors.New("the levels have been changed meanwhile: run verify again"))
	}
	return nil
}

// recheck returns the suspicions that hold for the present rows, states and files.
func (r *run) recheck(ctx context.Context, suspects []Finding) ([]suspicion, error) {
	var still []suspicion
	var ids []item.ID
	var paths []string
	for _, f := range suspects {
		switch f.Kind {
		case LeftOver, Orphaned:
			_, why, err := r.stat(ctx, f.Level, f.Path)
			if errors.Is(err, errNotLooked) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if why == "" && !r.isSpareFolder(ctx, f) {
				still = append(still, suspicion{Finding: f})
				if f.Kind == Orphaned {
					paths = append(paths, above(f.Path)...)
				}
			}
		default:
			ids = append(ids, f.ID)
		}
	}
	known, err := r.o.Catalog.FilenamesOf(ctx, paths)
	if err != nil {
		return nil, err
	}
	still = slices.DeleteFunc(still, func(d suspicion) bool {
		return d.Kind == Orphaned && slices.ContainsFunc(above(d.Path), func(p string) bool { return known[p] != 0 })
	})

	rows, err := r.o.Catalog.Rows(ctx, ids)
	if err != nil {
		return nil, err
	}
	states, err := r.o.Store.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	i := 0
	for _, f := range suspects {
		if f.Kind == LeftOver || f.Kind == Orphaned {
			continue
		}
		st := states[i]
		i++
		row, ok := rows[f.ID]
		if !ok {
			continue // the item was deleted
		}
		fs, err := r.compareRow(ctx, row, st)
		if err != nil {
			return nil, err
		}
		for _, g := range fs {
			if g.Kind == f.Kind && g.Level == f.Level && g.Path == f.Path {
				still = append(still, suspicion{g, row, st})
			}
		}
	}
	return still, nil
}

// above lists a path and the folders above it. One of these may have been registered as a directory meanwhile, which then
// includes the path.
func above(path string) []string {
	all := []string{path}
	for i := range path {
		if path[i] == '/' {
			all = append(all, path[:i])
		}
	}
	return all
}

// isSpareFolder tells whether a left-over is the empty folder of a release that has ended, which the next release reuses.
func (r *run) isSpareFolder(ctx context.Context, f Finding) bool {
	name, released := strings.CutPrefix(f.Path, item.MetaFolder+"/released/")
	return f.Kind == LeftOver && released && r.empty(ctx, f.Level, r.roots[f.Level].Released, name)
}

// repair repairs what is safe to repair. It returns what was done, or why nothing was.
func (r *run) repair(ctx context.Context, d suspicion, now *present) (string, error) {
	switch d.Kind {
	case LeftOver:
		return r.sweep(ctx, d.Finding, now)
	case Duplicate:
		if strings.HasSuffix(d.Detail, notLookedAt) {
			return "left: it may be the last copy; verify again when all tiers are there", nil
		}
		if strings.HasSuffix(d.Detail, lastCopy) {
			return "left: it may be the last copy; correct the row, or put its file there", nil
		}
		err := r.o.Store.Stray(ctx, event.Committed{ID: d.ID, To: d.Level, Filename: d.Path, CommittedAt: time.Now()})
		return "the releaser was told to remove it", err
	case Unsettled:
		return r.appendAgain(ctx, d, now.deadLetters)
	case Missing:
		return r.mend(ctx, d)
	case Orphaned:
		return "left: register it, or delete it", nil
	}
	return "left: only its owner knows which bytes are right", nil
}

// appendAgain appends the newest event again, unless there is a newer one.
func (r *run) appendAgain(ctx context.Context, d suspicion, deadLetters map[string]bool) (string, error) {
	if _, absent, err := r.stat(ctx, d.row.Level, d.row.Filename); err != nil || absent != "" {
		if errors.Is(err, errNotLooked) {
			err = nil
		}
		return "left: the row's file is missing, or its tier was not looked at", err
	}
	newest, s := "", state.State{ID: d.ID, Count: d.row.ViewCount}
	if d.state != nil {
		if deadLetters[d.state.EventID] {
			return "left: its event is a dead letter; remove the cause, then retry it", nil
		}
		newest, s = d.state.EntryID, *d.state
	}
	s.Target, _ = r.wanted(d.row, d.state)
	s.DBLevel, s.Filename = d.row.Level, d.row.Filename
	entry, err := r.o.Store.AppendIf(ctx, newest, r.o.NewView(s))
	if err == nil && entry == "" {
		return "left: a newer count came meanwhile", nil
	}
	return "its newest event was appended again", err
}

// sweep sweeps the tier of a left-over, once for all of a batch, and says what became of this one.
func (r *run) sweep(ctx context.Context, f Finding, now *present) (string, error) {
	level, _ := r.policy.Level(f.Level)
	if now.swept[f.Level] == "" {
		now.swept[f.Level] = "swept"
		var failed error
		err := r.ask(ctx, f.Level, func() error {
			failed = r.o.Sweep(ctx, r.mover, level)
			return nil
		})
		if err = cmp.Or(err, failed); err != nil {
			now.swept[f.Level] = "left: " + err.Error()
		}
	}
	_, why, err := r.stat(ctx, f.Level, f.Path)
	if errors.Is(err, errNotLooked) {
		return now.swept[f.Level], ctx.Err()
	}
	if err == nil && why == "" && now.swept[f.Level] == "swept" {
		return "left: its name is not one of Tierflow's, or an attempt uses it by now", nil
	}
	return now.swept[f.Level], err
}
