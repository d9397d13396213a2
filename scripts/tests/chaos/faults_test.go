package chaos_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// fault is something that goes wrong while Tierflow works. A fault brings back what it takes away.
type fault struct {
	name  string
	of    victim
	lossy bool // accepted counts may be lost, and the documentation says so
	do    func(ctx context.Context, w *world, r *rand.Rand) error
}

// victim is the target of a fault. Two faults of one victim run one after the other.
type victim int

const (
	processes victim = iota
	wires
	theRedis
	theMySQL
	theDisks
	victims
)

// faults returns all kinds of faults that this machine can make, those of the topology last. Each chooses its victim and its
// time at random.
func (w *world) faults() []fault {
	return slices.Concat(everywhere, refusing, []fault{full}, clocks(), w.diskFaults(), w.redis.faults())
}

// everywhere has the faults that every topology has.
var everywhere = []fault{
	{"a process is killed", processes, false, func(_ context.Context, w *world, r *rand.Rand) error {
		v := w.anyService(r)
		w.note("kill %s", v.Name)
		if err := v.Kill(); err != nil {
			return err
		}
		last(r, minIdle) // sometimes long enough for others to take over
		return v.Launch()
	}},
	{"a process is paused, perhaps beyond its lease", processes, false, func(_ context.Context, w *world, r *rand.Rand) error {
		v := w.anyService(r)
		w.note("pause %s", v.Name)
		if err := v.Pause(); err != nil {
			return err
		}
		last(r, 5*minIdle/2)
		w.note("resume %s", v.Name)
		return v.Resume()
	}},
	{"a process is cut off from MySQL", wires, false, func(_ context.Context, w *world, r *rand.Rand) error {
		v := w.anyService(r)
		w.note("cut %s off from MySQL", v.Name)
		w.gates[v.Name].Close()
		last(r, 3*minIdle/2)
		w.gates[v.Name].Open()
		return nil
	}},
	{"some requests and replies of all processes are lost", wires, false, func(_ context.Context, w *world, r *rand.Rand) error {
		w.note("lose requests and replies")
		for _, g := range w.allGates() {
			mine := rand.New(rand.NewPCG(r.Uint64(), 0))
			g.Judge(ofRequests(func() testserver.Fate {
				switch mine.IntN(40) {
				case 0:
					return testserver.LoseRequest
				case 1, 2:
					return testserver.LoseReply
				}
				return testserver.Pass
			}))
		}
		last(r, 2*time.Second)
		for _, g := range w.allGates() {
			g.Judge(nil)
		}
		return nil
	}},
	{"MySQL is killed", theMySQL, false, func(ctx context.Context, w *world, r *rand.Rand) error {
		w.note("kill MySQL")
		if err := w.mysql.Kill(); err != nil {
			return err
		}
		last(r, time.Second)
		if err := w.mysql.Start(ctx); err != nil {
			return err
		}
		w.note("MySQL is back")
		return nil
	}},
	{"MySQL is paused", theMySQL, false, func(_ context.Context, w *world, r *rand.Rand) error {
		w.note("pause MySQL")
		if err := w.mysql.Pause(); err != nil {
			return err
		}
		last(r, 2*minIdle)
		return w.mysql.Resume()
	}},
	{"MySQL ends its connections", theMySQL, false, func(ctx context.Context, w *world, _ *rand.Rand) error {
		w.note("end MySQL's connections")
		return w.asRoot(ctx, func(root *sql.Conn) error { return w.endSessions(ctx, root) })
	}},
	{"a consumer group is destroyed", theRedis, false, func(ctx context.Context, w *world, r *rand.Rand) error {
		stream, group := w.anyGroup(r)
		w.note("destroy the group %s", group)
		return w.Redis.XGroupDestroy(ctx, stream, group).Err()
	}},
	{"Redis is wiped", theRedis, true, func(ctx context.Context, w *world, _ *rand.Rand) error {
		w.note("wipe Redis")
		return w.redis.flush(ctx)
	}},
	{"a stream is trimmed by hand while entries are pending", theRedis, true, func(ctx context.Context, w *world, r *rand.Rand) error {
		stream, _ := w.anyGroup(r)
		w.note("trim %s", stream)
		return w.Redis.XTrimMaxLen(ctx, stream, 0).Err()
	}},
	{"entries are deleted by hand", theRedis, true, func(ctx context.Context, w *world, r *rand.Rand) error {
		stream, _ := w.anyGroup(r)
		newest, err := w.Redis.XRevRangeN(ctx, stream, "+", "-", 3).Result()
		for _, e := range newest {
			w.note("delete %s from %s", e.ID, stream)
			err = errors.Join(err, w.Redis.XDel(ctx, stream, e.ID).Err())
		}
		return err
	}},
}

// last makes a fault last for a random time up to most. The passing of time is part of the test.
func last(r *rand.Rand, most time.Duration) { time.Sleep(time.Duration(r.Int64N(int64(most)))) }

func (w *world) anyService(r *rand.Rand) *stack.Service {
	all := w.Services()
	return all[r.IntN(len(all))]
}

func (w *world) anyGroup(r *rand.Rand) (stream, group string) {
	k := w.Keys.In(r.IntN(w.Keys.Partitions()))
	all := [][2]string{{k.Views(), state.GroupRelocator}, {k.Relocated(), state.GroupCommitter}, {k.Committed(), state.GroupReleaser}}
	one := all[r.IntN(len(all))]
	return one[0], one[1]
}

// inflict runs a fault. Its error means that the fault could not happen, for example because its victim is away already.
func (w *world) inflict(f fault, r *rand.Rand) error {
	w.victims[f.of].Lock()
	defer w.victims[f.of].Unlock()
	w.mu.Lock()
	w.lossy = w.lossy || f.lossy
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := f.do(ctx, w, r); err != nil {
		w.note("%s: %v", f.name, err)
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return nil
}
