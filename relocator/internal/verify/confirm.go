package verify

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// confirm looks at all suspicions again and reports what stays; see the package comment. The order is: the row, the
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
	still, err := r.again(ctx, suspects)
	if err != nil {
		return err
	}
	if len(still) == 0 {
		return nil
	}
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
	flying, rows, dead := map[item.ID]bool{}, map[item.ID]catalog.Row{}, map[string]bool{}
	newest := map[item.ID]string{}
	if len(ids) > 0 {
		if flying, err = r.o.Store.InFlight(ctx, ids...); err != nil {
			return err
		}
		if rows, err = r.o.Catalog.Contents(ctx, ids); err != nil {
			return err
		}
		states, err := r.o.Store.GetMany(ctx, ids)
		if err != nil {
			return err
		}
		for i, s := range states {
			if s != nil {
				newest[ids[i]] = s.EntryID
			}
		}
	}
	if len(events) > 0 {
		if dead, err = r.o.Store.Dead(ctx, events...); err != nil {
			return err
		}
	}
	swept := ""
	for _, d := range still {
		if d.ID != 0 {
			holder, err := r.o.Store.Holder(ctx, d.ID)
			if err != nil {
				return err
			}
			if holder != "" || flying[d.ID] || d.row.ID != 0 && (changed(d.row, rows[d.ID]) || d.entry() != newest[d.ID]) {
				r.sum.InFlight++
				continue
			}
		}
		r.sum.Findings++
		mended := ""
		switch {
		case !r.o.Repair:
		case d.Kind == LeftOver:
			if swept == "" { // once for all
				swept = "swept"
				if err := r.o.Sweep(ctx); err != nil {
					swept = "left: " + err.Error()
				}
			}
			if mended, err = r.swept(d.Finding, swept); err != nil {
				return err
			}
		default:
			if mended, err = r.repair(ctx, d, dead); err != nil {
				return err
			}
		}
		r.o.Report(d.Finding, mended)
	}
	return nil
}

// doubt is a suspicion at the second look: with the row and the state that it was looked at with, where it is about any.
type doubt struct {
	Finding
	row   catalog.Row
	state *state.State
}

// entry is the id of the newest event's entry, "" where none is known.
func (d doubt) entry() string {
	if d.state == nil {
		return ""
	}
	return d.state.EntryID
}

// changed tells whether a row has been moved, begun to be released, renamed or made anew since it was read.
func changed(was, is catalog.Row) bool {
	return was.Generation != is.Generation || was.Level != is.Level || was.Filename != is.Filename || !was.Updated.Equal(is.Updated) ||
		was.Pinned != is.Pinned
}

// samePolicy makes sure that the levels are still those that everything was compared with.
func (r *run) samePolicy(ctx context.Context) error {
	now, err := r.o.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	if !slices.Equal(now.Levels(), r.policy.Levels()) {
		return fault.New(fault.Conflict, "compare", "", errors.New("the levels have been changed meanwhile: verify again"))
	}
	return nil
}

// again returns the suspicions that hold for the rows, the states and the files as they are now.
func (r *run) again(ctx context.Context, suspects []Finding) ([]doubt, error) {
	var still []doubt
	var ids []item.ID
	var paths []string
	for _, f := range suspects {
		switch f.Kind {
		case LeftOver, Orphaned:
			_, why, err := r.stat(r.roots[f.Level], f.Path)
			if err != nil {
				return nil, err
			}
			if why == "" && !r.spare(f) {
				still = append(still, doubt{Finding: f})
				if f.Kind == Orphaned {
					paths = append(paths, above(f.Path)...)
				}
			}
		default:
			ids = append(ids, f.ID)
		}
	}
	known := map[string]bool{}
	for part := range slices.Chunk(paths, page) {
		names, err := r.named(ctx, part)
		if err != nil {
			return nil, err
		}
		maps.Copy(known, names)
	}
	still = slices.DeleteFunc(still, func(d doubt) bool {
		return d.Kind == Orphaned && slices.ContainsFunc(above(d.Path), func(p string) bool { return known[p] })
	})

	rows, err := r.o.Catalog.Contents(ctx, ids)
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
			continue // forgotten
		}
		fs, err := r.look(ctx, row, st)
		if err != nil {
			return nil, err
		}
		for _, g := range fs {
			if g.Kind == f.Kind && g.Level == f.Level && g.Path == f.Path {
				still = append(still, doubt{g, row, st})
			}
		}
	}
	return still, nil
}

// above lists a path and the folders above it: a directory that has been registered meanwhile is one content with all in it.
func above(path string) []string {
	all := []string{path}
	for i := range path {
		if path[i] == '/' {
			all = append(all, path[:i])
		}
	}
	return all
}

// spare tells whether a left-over is a folder of a release that has ended meanwhile, which the next one takes over.
func (r *run) spare(f Finding) bool {
	name, released := strings.CutPrefix(f.Path, item.MetaFolder+"/released/")
	return f.Kind == LeftOver && released && r.empty(r.roots[f.Level].Released, name)
}

// repair mends what is safe, and says what was done or why not.
func (r *run) repair(ctx context.Context, d doubt, dead map[string]bool) (string, error) {
	switch d.Kind {
	case Duplicate:
		if strings.HasSuffix(d.Detail, lastCopy) {
			return "left: it may be the last copy; correct the row, or put its file there", nil
		}
		err := r.o.Store.Stray(ctx, event.Committed{ID: d.ID, To: d.Level, Filename: d.Path, CommittedAt: time.Now()})
		return "the releaser was asked to clear it", err
	case Unsettled:
		return r.settle(ctx, d, dead)
	case Missing:
		return "left: put the file there, or correct the row", nil
	case Orphaned:
		return "left: register it, or delete it", nil
	}
	return "left: nobody but its owner knows which bytes are right", nil
}

// settle appends the newest event once more, unless there is a newer one by now.
func (r *run) settle(ctx context.Context, d doubt, dead map[string]bool) (string, error) {
	newest, s := "", state.State{ID: d.ID, Count: d.row.ViewCount}
	if d.state != nil {
		if dead[d.state.EventID] {
			return "left: its event is in dead; mend the cause there, and retry it", nil
		}
		newest, s = d.state.EntryID, *d.state
	}
	s.Target, _ = r.wanted(d.row, d.state)
	s.DBLevel, s.Filename = d.row.Level, d.row.Filename
	entry, err := r.o.Store.AppendIf(ctx, newest, r.o.NewView(s))
	if err == nil && entry == "" {
		return "left: a newer count has come meanwhile", nil
	}
	return "its newest event was appended once more", err
}

// swept says what has become of a left-over, after a sweep.
func (r *run) swept(f Finding, done string) (string, error) {
	_, why, err := r.stat(r.roots[f.Level], f.Path)
	if err == nil && why == "" && done == "swept" {
		return "left: its name is not one of Tierflow's, or somebody is at it by now", nil
	}
	return done, err
}
