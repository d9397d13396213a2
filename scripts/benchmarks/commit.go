package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
)

var commit = Part{
	Name:  "commit",
	About: "relocations into MySQL with their history, against one transaction for each",
	Run:   runCommit,
}

// commits is a committer that is stopped while its stream is filled.
type commits struct {
	*tierflow
	rows   int
	single int // how many rows oneByOne changes
	round  int
}

func runCommit(ctx context.Context, b *Bench) error {
	c := &commits{rows: 100_000, single: 2000}
	if b.Quick {
		c.rows, c.single = 5000, 200
	}
	t, err := prepareTierflow(ctx, b, stack.Options{Dir: b.Dir}, nil)
	if err != nil {
		return err
	}
	c.tierflow = t
	if err := c.insert(ctx); err != nil {
		return err
	}
	if err := t.stack.Committer.Start(ctx); err != nil {
		return err
	}
	return b.Compare(ctx, Case{
		Figure: Figure{Name: "relocations committed", Unit: "commits/s", Min: 20_000},
		Ours:   Subject{Name: "committer", Measure: c.batches},
		Against: []Subject{{Name: "a transaction for each", Measure: func(ctx context.Context) (float64, error) {
			return c.oneByOne(ctx)
		}}},
	})
}

func (c *commits) insert(ctx context.Context) error {
	const part = 5000
	for from := 0; from < c.rows+c.single; from += part {
		var values []string
		for i := from; i < min(from+part, c.rows+c.single); i++ {
			values = append(values, fmt.Sprintf("(%d,'bronze','videos/%d.mp4')", i+1, i+1))
		}
		if _, err := c.stack.DB().ExecContext(ctx, "INSERT INTO contents (cid, content_level, filename) VALUES "+strings.Join(values, ",")); err != nil {
			return err
		}
	}
	return nil
}

// way returns the levels from which and to which a round moves the rows. Rounds alternate.
func (c *commits) way() (from, to string) {
	if c.round%2 == 0 {
		return "bronze", "silver"
	}
	return "silver", "bronze"
}

func (c *commits) batches(ctx context.Context) (float64, error) {
	from, to := c.way()
	pid := c.stack.Committer.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return 0, err
	}
	err := c.fill(ctx, from, to)
	begin := time.Now()
	if err := errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)); err != nil {
		return 0, err
	}
	stream, group := c.stack.Keys.Relocated(), "committer"
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		groups, err := c.stack.Redis.XInfoGroups(ctx, stream).Result()
		if err != nil {
			return 0, err
		}
		if len(groups) == 1 && groups[0].Name == group && groups[0].Pending == 0 && groups[0].Lag == 0 {
			break
		}
		if time.Since(begin) > 5*time.Minute {
			return 0, fmt.Errorf("not committed within five minutes: %+v\n%s", groups, c.stack.Logs())
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(begin)
	c.round++
	return float64(c.rows) / took.Seconds(), c.check(ctx, to, c.rows*c.round, 1, c.rows)
}

func (c *commits) fill(ctx context.Context, from, to string) error {
	now := time.Now()
	for at := 0; at < c.rows; at += 1000 {
		_, err := c.stack.Redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := at; i < min(at+1000, c.rows); i++ {
				r := event.Relocated{EventID: c.eventID(i + 1), ID: item.ID(i + 1), From: from, To: to,
					Filename: fmt.Sprintf("videos/%d.mp4", i+1), Generation: int64(c.round), Count: 1, Bytes: 16 << 10, Method: "link",
					WorkerID: "bench", StartedAt: now, FinishedAt: now}
				pipe.XAdd(ctx, &redis.XAddArgs{Stream: c.stack.Keys.Relocated(), Values: r.Fields()})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eventID returns a UUIDv7 as the api makes them. They ascend, so MySQL inserts at the end of the history's unique key.
func (c *commits) eventID(n int) string {
	ms := time.Now().UnixMilli()
	return fmt.Sprintf("%08x-%04x-7%03x-8%03x-%012x", ms>>16, ms&0xffff, n>>12&0xfff, n&0xfff, c.round<<32|n)
}

// check checks the level and the generation of every row, and the number of history rows. Each history row must name two
// different levels.
func (c *commits) check(ctx context.Context, to string, history, first, last int) error {
	var rows, moved, events int
	err := c.stack.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM contents WHERE cid BETWEEN ? AND ? AND content_level = ? AND generation = ?",
		first, last, to, c.round).Scan(&rows)
	if err == nil {
		err = c.stack.DB().QueryRowContext(ctx, "SELECT COUNT(*), COUNT(DISTINCT event_id) FROM update_history"+
			" WHERE cid BETWEEN ? AND ? AND old_level <> new_level", first, last).Scan(&moved, &events)
	}
	if err == nil && (rows != last-first+1 || moved != history || events != history) {
		err = fmt.Errorf("%d rows of %d are on %s with generation %d; the history has %d rows of %d events, not %d",
			rows, last-first+1, to, c.round, moved, events, history)
	}
	return err
}

// oneByOne does what a batch does in the simplest way: for other rows, with a transaction for each.
func (c *commits) oneByOne(ctx context.Context) (float64, error) {
	c.round--
	from, to := c.way()
	begin := time.Now()
	for i := c.rows; i < c.rows+c.single; i++ {
		if err := c.one(ctx, i+1, from, to); err != nil {
			return 0, err
		}
	}
	took := time.Since(begin)
	c.round++
	return float64(c.single) / took.Seconds(), c.check(ctx, to, c.single*c.round, c.rows+1, c.rows+c.single)
}

func (c *commits) one(ctx context.Context, id int, from, to string) error {
	tx, err := c.stack.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var before time.Time
	now := time.Now().UTC()
	if err := tx.QueryRowContext(ctx, "SELECT update_time FROM contents WHERE cid = ? FOR UPDATE", id).Scan(&before); err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, "UPDATE contents SET content_level = ?, generation = generation + 1, update_time = ?, view_count = ?,"+
		" size_bytes = ? WHERE cid = ? AND generation = ?", to, now, 1, 16<<10, id, c.round)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("item %d: %d rows were as they were", id, n))
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time,"+
		" view_count, bytes, duration_us, worker_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", c.eventID(id), id, from, to, before, now,
		1, 16<<10, 0, "bench")
	if err != nil {
		return err
	}
	return tx.Commit()
}
