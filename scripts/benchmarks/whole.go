package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	movingItems = 1000 // items that the load with moves sends from bronze to silver and back
	firstMover  = firstID + items
	firstFresh  = firstMover + movingItems // items on bronze that have never moved, for firstMoves
)

// whole is a Tierflow with all its services, as a user runs it, and with a file for each item. After each measurement it
// waits until everything is settled. Then every row must have the newest count of its item, and every file must be where
// its row says.
type whole struct {
	*tierflow
	name    string // of the subject
	posts   *posts
	digests map[item.ID]string // of the files that move
	from    int                // so many counts were posted
	moved   int                // so many of the posts were of movers
	fresh   []item.ID          // items that have not moved yet
	folders map[string]string  // of the tiers, by level
}

// groupBench is a group on views that reads nothing. Relocators trim only what every group has read, so each entry stays
// until the measurement is accounted for.
const groupBench = "bench"

// startWholes starts this Tierflow and that of the previous commit, if there is one.
func (s *singles) startWholes(ctx context.Context) error {
	var err error
	if s.whole, err = startWhole(ctx, s.Bench, "whole", s.Programs); err != nil || s.Previous == "" {
		return err
	}
	programs, err := s.buildPrevious(ctx)
	if err != nil {
		return fmt.Errorf("--previous=%s: %w", s.Previous, err)
	}
	s.previous, err = startWhole(ctx, s.Bench, "previous", programs)
	if err == nil {
		s.previous.name = "commit " + s.Previous
	}
	return err
}

func startWhole(ctx context.Context, b *Bench, dir, programs string) (*whole, error) {
	fresh := b.freshItems() * b.Rounds
	files := smallFiles(items+movingItems+fresh, "gold")
	w := &whole{digests: map[item.ID]string{}}
	for i := range files {
		files[i].Size = 1 << 10
		if i >= items {
			files[i].Level, files[i].Size = "bronze", 16<<10
		}
		if files[i].ID >= firstFresh {
			w.fresh = append(w.fresh, files[i].ID)
		}
	}
	var err error
	w.tierflow, err = prepareTierflow(ctx, b, stack.Options{Dir: filepath.Join(b.Dir, dir), Programs: programs, Settings: map[string]string{
		"TIERFLOW_MAX_BACKLOG": "100000000", // what is not settled is measured, and not refused
	}}, files)
	if err != nil {
		return nil, err
	}
	if w.folders, err = w.stack.Folders(ctx); err != nil {
		return nil, err
	}
	for _, f := range files[items:] {
		if w.digests[f.ID], err = stack.Digest(filepath.Join(w.folders[f.Level], f.Filename)); err != nil {
			return nil, err
		}
	}
	w.posts = &posts{Bench: b, stack: w.stack, redis: w.redis, mysql: w.mysql}
	if err := w.posts.noRewrites(ctx); err != nil {
		return nil, err
	}
	if err := w.stack.Redis.XGroupCreateMkStream(ctx, w.stack.Keys.Views(), groupBench, "0").Err(); err != nil {
		return nil, err
	}
	if err := w.stack.Start(ctx); err != nil {
		return nil, err
	}
	return w, w.greet(ctx)
}

// greet posts a count of every item, so that the api's cache of items is filled.
func (w *whole) greet(ctx context.Context) error {
	l := &load{}
	for i := range items {
		l.ids = append(l.ids, item.ID(firstID+i).String())
	}
	_, err := w.batch(ctx, l, "", items)
	return err
}

// posted is what a load generator says of a load.
type posted struct {
	took time.Duration
	ok   int           // accepted
	late int           // at most so many more were under way at the end
	cpu  time.Duration // used by wrk; 0: another generator
	// lines is set where the counts were posted as lines of batches, and not one by one.
	lines bool
}

// settling is what a measurement of the whole gives.
type settling struct {
	accepted int
	posting  time.Duration
	lag      int64         // entries of all streams that were not settled when posting ended
	settling time.Duration // from then on until everything was settled
	cost     cost          // for each accepted count, over both times
}

// rate is the number of counts a second that are accepted and settled.
func (r settling) rate() float64 { return float64(r.accepted) / (r.posting + r.settling).Seconds() }

// wrk posts a load as fast as answers come. With a title it also records a timeline.
func (w *whole) wrk(ctx context.Context, l *load, title string) (settling, error) {
	return w.measure(ctx, l, title, func(ctx context.Context, l *load) (posted, error) {
		l.lasts = w.postingLasts()
		r, err := l.run(ctx, "http://"+w.stack.API.Addr+"/post_sentence")
		return posted{took: r.took, ok: r.ok, late: connections, cpu: r.cpu}, err
	})
}

// batch posts lines in batches: n of them, or, where n is 0, for as long as the load lasts.
func (w *whole) batch(ctx context.Context, l *load, title string, n int) (settling, error) {
	return w.measure(ctx, l, title, func(ctx context.Context, l *load) (posted, error) {
		l.lasts = w.postingLasts()
		return w.posts.batch(ctx, l, n)
	})
}

// postingLasts is how long a load is posted to the whole: long enough for a relocator that does not keep up to show it.
func (w *whole) postingLasts() time.Duration {
	if w.Quick {
		return time.Second
	}
	return 10 * time.Second
}

// paced posts at a fixed rate, and returns how long each answer took.
func (w *whole) paced(ctx context.Context, l *load, rate float64) (times []time.Duration, err error) {
	_, err = w.measure(ctx, l, "", func(ctx context.Context, l *load) (posted, error) {
		times, err = l.paced(ctx, w.stack.API.Addr, "/post_sentence", rate)
		return posted{took: l.lasts, ok: len(times)}, err
	})
	return times, err
}

// measure posts with post, waits until all is settled, and checks what has become of each count.
func (w *whole) measure(ctx context.Context, l *load, title string, post func(context.Context, *load) (posted, error)) (settling, error) {
	if err := w.begin(ctx); err != nil {
		return settling{}, err
	}
	mine := *l
	mine.from, mine.moved = w.from, w.moved
	m, err := startMeter(w.programs())
	if err != nil {
		return settling{}, err
	}
	watching := w.watchStreams(ctx)
	p, err := post(ctx, &mine)
	ended := time.Now()
	if err != nil {
		_, stopped := watching()
		l, unread := w.posts.read(ctx) // some of its counts may have been accepted
		w.advance(l)
		return settling{}, errors.Join(err, stopped, unread)
	}
	now, err := w.look(ctx)
	if err != nil {
		return settling{}, err
	}
	r := settling{posting: p.took, lag: now.Lag}
	if r.settling, err = w.settled(ctx, ended); err != nil {
		return settling{}, err
	}
	used, err := m.used()
	if err != nil {
		return settling{}, err
	}
	moments, err := watching()
	if err != nil {
		return settling{}, err
	}
	if title != "" {
		w.report.timeline(w.part, title, moments, ended)
	}
	if p.cpu > 0 {
		used["wrk"] = p.cpu
	}
	r.accepted, err = w.check(ctx, p)
	r.cost = costOf(used, max(r.accepted, 1))
	return r, err
}

// begin waits until nothing is left of the measurement before, and marks where the next begins.
func (w *whole) begin(ctx context.Context) error {
	if _, err := w.settled(ctx, time.Now()); err != nil {
		return err
	}
	if err := w.posts.mark(ctx); err != nil {
		return err
	}
	syscall.Sync() // so that writing earlier data to the disk is not measured
	return w.stack.Redis.XGroupSetID(ctx, w.stack.Keys.Views(), groupBench, w.posts.marked.last).Err()
}

// look reads how far the streams are.
func (w *whole) look(ctx context.Context) (Moment, error) {
	keys := w.stack.Keys
	pipe := w.stack.Redis.TxPipeline()
	views := pipe.XInfoStream(ctx, keys.Views())
	groups := map[string]*redis.XInfoGroupsCmd{
		state.GroupRelocator: pipe.XInfoGroups(ctx, keys.Views()),
		state.GroupCommitter: pipe.XInfoGroups(ctx, keys.Relocated()),
		state.GroupReleaser:  pipe.XInfoGroups(ctx, keys.Committed()),
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return Moment{}, err
	}
	m := Moment{at: time.Now(), Accepted: views.Val().EntriesAdded - w.posts.marked.added}
	for name, infos := range groups {
		for _, g := range infos.Val() {
			if g.Name != name {
				continue
			}
			if g.Lag < 0 {
				return Moment{}, fmt.Errorf("Redis cannot tell the lag of group %s", name)
			}
			m.Lag += g.Pending + g.Lag
			if name == state.GroupRelocator {
				m.Settled = m.Accepted - g.Pending - g.Lag
			}
		}
	}
	return m, nil
}
