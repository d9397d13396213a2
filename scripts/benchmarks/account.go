package benchmarks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// clear empties Redis and makes the relocators' group again. Everything else that is there later comes from the next
// measurement.
func (p *posts) clear(ctx context.Context) error {
	if err := p.stack.Redis.FlushAll(ctx).Err(); err != nil {
		return err
	}
	if err := p.stack.Redis.XGroupCreateMkStream(ctx, p.stack.Keys.Views(), state.GroupRelocator, "0").Err(); err != nil {
		return err
	}
	return p.mark(ctx)
}

// mark remembers the end of the stream and the number of answers. account and read look only at what comes after it.
func (p *posts) mark(ctx context.Context) error {
	info, err := p.stack.Redis.XInfoStream(ctx, p.stack.Keys.Views()).Result()
	if err != nil {
		return err
	}
	p.marked.added, p.marked.last = info.EntriesAdded, info.LastGeneratedID
	p.marked.answered, err = p.answered(ctx)
	return err
}

// answered returns how many single posts the api has answered since it started, by status class such as "2xx".
func (p *posts) answered(ctx context.Context) (map[string]int, error) {
	metrics, err := p.stack.Client().Get(ctx, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	n := map[string]int{}
	for line := range bytes.Lines(metrics) {
		rest, ok := bytes.CutPrefix(line, []byte(`tierflow_http_requests_total{route="/post_sentence",status="`))
		if !ok {
			continue
		}
		class, value, _ := bytes.Cut(rest, []byte(`"} `))
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
		if err != nil {
			return nil, fmt.Errorf("/metrics: %s: %w", line, err)
		}
		n[string(class)] = int(v)
	}
	if len(n) == 0 {
		return nil, fmt.Errorf("/metrics does not say how many requests were answered: %s", metrics)
	}
	return n, nil
}

// account checks that the stream has each single post that the api has answered with 200 since the mark exactly once,
// and no other. It also checks that the state of each item is that of its newest event. ok is the number of answers that
// the load generator has counted. At most late more posts were under way when it ended. Only the api knows their answers,
// and it refuses those that waited for a look-up.
func (p *posts) account(ctx context.Context, ok, late int) (l ledger, err error) {
	var answered, refused int
	// The api still answers the posts that are under way, although the load generator has closed its connections.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n, err := p.answered(ctx)
		if err != nil {
			return l, err
		}
		refused = 0
		for class := range n {
			if n[class] -= p.marked.answered[class]; class != "2xx" {
				refused += n[class]
			}
		}
		info, err := p.stack.Redis.XInfoStream(ctx, p.stack.Keys.Views()).Result()
		if err != nil {
			return l, err
		}
		over := time.Now().After(deadline)
		if answered = n["2xx"]; int(info.EntriesAdded-p.marked.added) != answered && !over {
			continue
		}
		if l, err = p.read(ctx); err != nil {
			return l, err
		}
		if l.entries == answered || over {
			break
		}
	}
	if l.entries != answered || answered < ok || answered+refused > ok+late {
		return l, fmt.Errorf("the client counts %d posts with 200 and at most %d under way; the api counts %d with 2xx and %d others; the stream has %d entries",
			ok, late, answered, refused, l.entries)
	}
	return l, p.agrees(ctx, l)
}

// ledger is what has come into the stream of view events since the mark.
type ledger struct {
	entries        int
	movers         int                        // entries of items that the load with moves sends to and fro
	counts, events map[string]bool            // a count with its item, an event id
	newest         map[item.ID]redis.XMessage // of each item
}

func (p *posts) read(ctx context.Context) (ledger, error) {
	l := ledger{counts: map[string]bool{}, events: map[string]bool{}, newest: map[item.ID]redis.XMessage{}}
	for from := "(" + p.marked.last; ; {
		page, err := p.stack.Redis.XRangeN(ctx, p.stack.Keys.Views(), from, "+", 10_000).Result()
		if err != nil || len(page) == 0 {
			return l, err
		}
		for _, e := range page {
			count, _ := e.Values["count"].(string)
			event, _ := e.Values["event_id"].(string)
			cid, _ := e.Values["cid"].(string)
			id, err := item.ParseID(cid)
			if err != nil {
				return l, fmt.Errorf("entry %s: cid %w", e.ID, err)
			}
			if isMover(id) {
				l.movers++
			}
			l.counts[cid+" "+count], l.events[event], l.newest[id] = true, true, e
		}
		l.entries += len(page)
		from = "(" + page[len(page)-1].ID
	}
}

// agrees checks that no two entries come from the same post, and that the state of each item is that of its newest entry.
func (p *posts) agrees(ctx context.Context, l ledger) error {
	if len(l.counts) != l.entries || len(l.events) != l.entries {
		return fmt.Errorf("%d entries are in the stream, with only %d different counts and %d different event ids",
			l.entries, len(l.counts), len(l.events))
	}
	store := state.NewStore(state.Options{Redis: p.stack.Redis, Keys: p.stack.Keys})
	var ids []item.ID
	for id := range l.newest {
		ids = append(ids, id)
	}
	states, err := store.GetMany(ctx, ids)
	if err != nil {
		return err
	}
	var wrong []error
	for i, id := range ids {
		e, s := l.newest[id], states[i]
		if s == nil || s.EntryID != e.ID || s.EventID != e.Values["event_id"] || s.Count.String() != e.Values["count"] {
			wrong = append(wrong, fmt.Errorf("item %s: its newest entry is %s %v, its state %+v", id, e.ID, e.Values, s))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d states do not agree with the stream, such as: %w", len(wrong), errors.Join(wrong[:min(3, len(wrong))]...))
	}
	return nil
}
