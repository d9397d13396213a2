package main

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

// move is a committed relocation, as the streams report it.
type move struct {
	id       item.ID
	from, to string
	filename string
	method   string // "" where its entry in relocated was not seen
	bytes    int64
	took     time.Duration
}

// follow reads the streams relocated and committed from their beginning, and sends each committed relocation. It returns
// when ctx ends or Redis fails.
func follow(ctx context.Context, s *stack.Stack, moves chan<- move) error {
	made := map[string]event.Relocated{} // by event id, until committed
	last := map[string]string{s.Keys.Relocated(): "0", s.Keys.Committed(): "0"}
	for {
		streams, err := s.Redis.XRead(ctx, &redis.XReadArgs{
			Streams: []string{s.Keys.Relocated(), s.Keys.Committed(), last[s.Keys.Relocated()], last[s.Keys.Committed()]},
			Block:   500 * time.Millisecond,
		}).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		for _, stream := range streams { // relocated before committed
			for _, m := range stream.Messages {
				last[stream.Stream] = m.ID
				if stream.Stream == s.Keys.Relocated() {
					note(text(m.Values), made)
				} else if err := send(ctx, text(m.Values), made, moves); err != nil {
					return err
				}
			}
		}
	}
}

// note keeps what an entry of relocated says, until its commit.
func note(values map[string]string, made map[string]event.Relocated) {
	if r, err := event.ParseRelocated(values); err == nil {
		made[r.EventID] = r
	}
}

// send sends the move that an entry of committed says, and forgets what was made of its event.
func send(ctx context.Context, values map[string]string, made map[string]event.Relocated, moves chan<- move) error {
	c, err := event.ParseCommitted(values)
	if err != nil || c.Outcome != event.OutcomeCommitted {
		return nil
	}
	r := made[c.EventID]
	delete(made, c.EventID)
	select {
	case moves <- move{c.ID, c.From, c.To, c.Filename, r.Method, r.Bytes, r.FinishedAt.Sub(r.StartedAt)}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// text returns an entry's values as strings. All values in a stream are strings.
func text(values map[string]any) map[string]string {
	m := make(map[string]string, len(values))
	for k, v := range values {
		m[k], _ = v.(string)
	}
	return m
}
