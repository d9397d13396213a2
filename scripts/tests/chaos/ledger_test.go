package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/api/client"
	kind "github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// post is a count that a client has sent.
type post struct {
	count   item.Count
	eventID string // "" where it is unknown whether the post was accepted
}

// ledger is the model: it knows every post of every item, in order.
type ledger struct {
	mu    sync.Mutex
	posts map[item.ID][]post
	from  map[string]string // by stream of views: entries before this one are ignored
	wrong []error
}

func newLedger() *ledger { return &ledger{posts: map[item.ID][]post{}} }

// forget starts the ledger anew: every post before may be lost.
func (l *ledger) forget(from map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.posts, l.from = map[item.ID][]post{}, from
}

// answerTimeout is when a client gives up.
const answerTimeout = 2 * time.Second

// post sends one count. Its error means that the count was not accepted, or that this is unknown.
func (w *world) post(ctx context.Context, id item.ID, count item.Count) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := w.Client().PostView(ctx, client.View{CID: id, Count: count})
	var p *client.Problem
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		if answer.EventID == "" {
			l.wrong = append(l.wrong, fmt.Errorf("the answer to a post is %+v", answer))
		}
		l.posts[id] = append(l.posts[id], post{count, answer.EventID})
	case !errors.As(err, &p), p.Status == http.StatusServiceUnavailable && p.Kind() == kind.Unavailable:
		l.posts[id] = append(l.posts[id], post{count, ""})
	case p.Status == http.StatusServiceUnavailable && p.Kind() == kind.BacklogFull:
	default:
		l.wrong = append(l.wrong, fmt.Errorf("a post is answered with %w", err))
	}
	return err
}

// traffic posts random counts of all items, one after the other, until stop is called. stop returns how many were accepted.
func (w *world) traffic(seed uint64, every time.Duration) (stop func() int) {
	random := rand.New(rand.NewPCG(seed, 1))
	ids := slices.Sorted(maps.Keys(w.reader.want))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() {
		accepted := 0
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			id, count := ids[random.IntN(len(ids))], item.Count(random.IntN(3000))
			// The post that is under way when the traffic ends gets its answer, so that its result is known.
			if w.post(context.WithoutCancel(ctx), id, count) == nil {
				accepted++
			}
			select {
			case <-ctx.Done():
				done <- accepted
				return
			case <-tick.C:
			}
		}
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// check compares views, the stream that keeps what was settled, with the posts. It also tells the stack the last count of
// each item. No event may be missing, occur twice or be in the wrong place. An event of a post with an unknown result may
// be there or not, at any place.
func (l *ledger) check(ctx context.Context, w *world) (problems []error) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	l.mu.Lock()
	defer l.mu.Unlock()
	problems = append(problems, l.wrong...)
	l.wrong = nil

	var entries []redis.XMessage
	for _, k := range w.Keys.Each() {
		from := l.from[k.Views()]
		if from == "" {
			from = "-"
		}
		for {
			page, err := w.Redis.XRangeN(ctx, k.Views(), from, "+", 1000).Result()
			if err != nil {
				return append(problems, err)
			}
			if entries = append(entries, page...); len(page) < 1000 {
				break
			}
			from = "(" + page[len(page)-1].ID
		}
	}
	type view struct {
		entry, eventID string
		count          item.Count
	}
	views := map[item.ID][]view{} // each event once, at its first place
	last := map[item.ID]view{}
	postedAt := map[string]string{} // by event
	for _, e := range entries {
		id, err := item.ParseID(e.Values["cid"].(string))
		if err != nil {
			problem("views: entry %s: %w", e.ID, err)
			continue
		}
		count, err := item.ParseCount(e.Values["count"].(string))
		if err != nil {
			problem("views: entry %s: %w", e.ID, err)
			continue
		}
		v := view{e.ID, e.Values["event_id"].(string), count}
		posted := e.Values["posted_at"].(string)
		if first, again := postedAt[v.eventID]; !again {
			postedAt[v.eventID] = posted
			views[id] = append(views[id], v)
		} else if posted == first { // an event that the committer appends again has a new time
			problem("item %s: event %s, posted at %s, was appended twice", id, v.eventID, posted)
		}
		last[id] = v
	}
	for id, posts := range l.posts {
		known := map[string]int{} // accepted posts, by event
		doubtful := map[item.Count]int{}
		newest := ""
		for i, p := range posts {
			if p.eventID == "" {
				doubtful[p.count]++
				continue
			}
			known[p.eventID], newest = i, p.eventID
		}
		at := -1
		for _, v := range views[id] {
			i, ok := known[v.eventID]
			switch {
			case !ok && doubtful[v.count] == 0:
				problem("item %s: event %s, count %s, was posted by nobody", id, v.eventID, v.count)
			case !ok:
				doubtful[v.count]--
			case i < at:
				problem("item %s: event %s stands behind a later one", id, v.eventID)
			case posts[i].count != v.count:
				problem("item %s: event %s has the count %s, %s was posted", id, v.eventID, v.count, posts[i].count)
			default:
				at = i
			}
			if ok {
				delete(known, v.eventID)
			}
		}
		for event := range known {
			problem("item %s: event %s was accepted and is not there", id, event)
		}
		v, there := last[id]
		if i := slices.IndexFunc(posts, func(p post) bool { return p.eventID == v.eventID }); there && i >= 0 && v.eventID != newest {
			problem("item %s: the last entry, %s, is that of event %s, the last that was accepted is %s", id, v.entry, v.eventID, newest)
		}
		if there {
			w.Posted(id, v.count)
		}
	}
	return problems
}
