package state

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// NewState is the state of a view event that is about to be appended.
func NewState(v event.View) State {
	s := State{
		ID: v.ID, Count: v.Count, Target: v.Target, DBLevel: v.DBLevel, Filename: v.Filename,
		Status: Update, EventID: v.EventID, UpdatedAt: v.PostedAt,
	}
	if v.Target == v.DBLevel {
		s.Status = Done
	}
	return s
}

// Append appends view events of one partition and writes their states, all in one step, and returns their entry ids.
// After an error the events may or may not be in the stream, so the caller must not call it again with them.
func (s *Store) Append(ctx context.Context, views []event.View) ([]string, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	k := s.keys.Of(views[0].ID)
	keys := make([]string, 1, 1+len(views))
	keys[0] = k.Views()
	// The arguments are pointers because this path must be fast: Go copies a value to the heap when it makes an interface
	// of it, and a pointer not.
	args := make([]any, 0, 8*len(views))
	texts := make([]string, 2*len(views))
	newer := make(map[item.ID]bool, len(views)) // items of this call: only the state of the newest event need be written
	var b []byte
	for i := len(views) - 1; i >= 0; i-- {
		v := &views[i]
		b = b[:0]
		if !newer[v.ID] {
			newer[v.ID] = true
			b = NewState(*v).appendHead(b)
		}
		texts[2*i] = string(b)
		texts[2*i+1] = event.FormatTime(v.PostedAt)
	}
	for i := range views {
		v := &views[i]
		keys = append(keys, k.State(v.ID))
		args = append(args, &texts[2*i], &v.EventID, (*int64)(&v.ID), (*int64)(&v.Count), &v.Target, &v.DBLevel, &v.Filename, &texts[2*i+1])
	}
	ids, err := appendScript.Run(ctx, s.rdb, keys, args...).StringSlice()
	if err != nil {
		return nil, unavailable("append view", k.Views(), err)
	}
	return ids, nil
}

// AppendIf appends a view event and writes its state where newest still is the entry id of the item's newest event ("":
// where there is no state). Callers use it to post the last count again, because a newer event may have come after they
// read the count. Where there is a newer event, it returns "" and has done nothing.
func (s *Store) AppendIf(ctx context.Context, newest string, v event.View) (string, error) {
	if err := s.agreed(ctx); err != nil {
		return "", err
	}
	st := NewState(v)
	args := append([]any{newest, st.head(), st.tail()}, anys(v.Fields())...)
	id, err := appendIfScript.Run(ctx, s.rdb, []string{s.keys.Of(v.ID).Views(), s.keys.State(v.ID)}, args...).Text()
	if err != nil {
		return "", unavailable("append view", v.ID.String(), err)
	}
	return id, nil
}

// Newest is an item's newest event as Redis knows it.
type Newest struct {
	State   *State // nil where Get returns none
	Settled bool   // the state has an expiry, which it gets when its event is settled; or there is no state
}

// Newest reads the states of many items, and then whether they expire. A state that is replaced in between is returned as
// settled only where the newer one is.
func (s *Store) Newest(ctx context.Context, ids []item.ID) ([]Newest, error) {
	states, err := s.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	ttls := make([]*redis.DurationCmd, len(ids))
	_, err = s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, id := range ids {
			if states[i] != nil {
				ttls[i] = pipe.PTTL(ctx, s.keys.State(id))
			}
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("read the expiry of", "states", err)
	}
	all := make([]Newest, len(ids))
	for i, st := range states {
		all[i] = Newest{State: st, Settled: st == nil || ttls[i].Val() != noExpiry}
	}
	return all, nil
}

// noExpiry is what go-redis makes of PTTL's answer for a key that never expires.
const noExpiry = -1

func anys(ss []string) []any {
	as := make([]any, len(ss))
	for i, v := range ss {
		as[i] = v
	}
	return as
}

// values returns the values of an entry's fields, without their names.
func values(fields []string) []any {
	vs := make([]any, 0, len(fields)/2)
	for i := 1; i < len(fields); i += 2 {
		vs = append(vs, fields[i])
	}
	return vs
}
