package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// CheckSettled waits until all entries are settled, and then checks everything that must be true of a Tierflow at rest.
// Every added item is on the level that its last count (or its pin) calls for, with its bytes, and on no other level. Its
// row has that count, and row, state and history agree. The tiers have no file that no row names. There is no dead
// letter. The error names everything that is wrong.
func (s *Stack) CheckSettled(ctx context.Context) error {
	err := poll(ctx, func() error {
		if err := s.Settled(ctx); err != nil {
			return err
		}
		return s.noLeftovers(ctx)
	})
	if err != nil {
		return err
	}
	policy, err := s.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	c := check{s: s, policy: policy}
	if err := c.rows(ctx); err != nil {
		return err
	}
	if err := c.tiers(); err != nil {
		return err
	}
	if err := c.dead(ctx); err != nil {
		return err
	}
	return errors.Join(c.problems...)
}

// Settled returns nil when the groups of the three streams have received and settled every entry, in every partition.
func (s *Stack) Settled(ctx context.Context) error {
	var errs []error
	for _, k := range s.Keys.Each() {
		errs = append(errs, s.settled(ctx, k))
	}
	return errors.Join(errs...)
}

// settled reads all streams of a partition in one transaction, because a commit may append views again.
func (s *Stack) settled(ctx context.Context, keys state.Keys) error {
	type look struct {
		stream, group string
		groups        *redis.XInfoGroupsCmd
		newest        *redis.XMessageSliceCmd
	}
	looks := []look{
		{stream: keys.Views(), group: state.GroupRelocator},
		{stream: keys.Relocated(), group: state.GroupCommitter},
		{stream: keys.Committed(), group: state.GroupReleaser},
	}
	pipe := s.Redis.TxPipeline()
	for i := range looks {
		looks[i].groups = pipe.XInfoGroups(ctx, looks[i].stream)
		looks[i].newest = pipe.XRevRangeN(ctx, looks[i].stream, "+", "-", 1)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("look at the streams: %w", err)
	}
	var errs []error
	for _, l := range looks {
		at := slices.IndexFunc(l.groups.Val(), func(g redis.XInfoGroup) bool { return g.Name == l.group })
		if at < 0 {
			errs = append(errs, fmt.Errorf("stream %s has no group %s", l.stream, l.group))
			continue
		}
		group := l.groups.Val()[at]
		if group.Pending > 0 {
			errs = append(errs, fmt.Errorf("stream %s: %d entries are pending in group %s", l.stream, group.Pending, l.group))
		}
		for _, newest := range l.newest.Val() {
			if entryid.Newer(newest.ID, group.LastDeliveredID) {
				errs = append(errs, fmt.Errorf("stream %s: group %s has read up to %s, the newest entry is %s",
					l.stream, l.group, group.LastDeliveredID, newest.ID))
			}
		}
	}
	return errors.Join(errs...)
}

// noLeftovers returns nil when .tierflow/tmp and .tierflow/released of all tiers are empty.
func (s *Stack) noLeftovers(ctx context.Context) error {
	folders, err := s.Folders(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for level, at := range folders {
		for _, folder := range []string{"tmp", "released"} {
			left, err := os.ReadDir(filepath.Join(at, item.MetaFolder, folder))
			errs = append(errs, err)
			for _, d := range left {
				errs = append(errs, fmt.Errorf("level %s: left in %s/%s: %s", level, item.MetaFolder, folder, d.Name()))
			}
		}
	}
	return errors.Join(errs...)
}

// check collects what is wrong.
type check struct {
	s        *Stack
	policy   policy.Policy
	named    []catalog.Row
	problems []error
}

func (c *check) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf(format, args...))
}

// rows checks each row against the posted counts, its file, its state and its history. An error means that it could not
// check.
func (c *check) rows(ctx context.Context) error {
	seen := 0
	err := c.s.Catalog.Each(ctx, func(row catalog.Row) error {
		c.named = append(c.named, row)
		level, ok := c.policy.Level(row.Level)
		if !ok {
			c.problem("item %s: its level %s is not there", row.ID, row.Level)
			return nil
		}
		digest, err := Digest(filepath.Join(c.s.at(level.Path), row.Filename))
		if err != nil {
			c.problem("item %s: %w", row.ID, err)
		}
		c.s.mu.Lock()
		e := c.s.expected[row.ID]
		c.s.mu.Unlock()
		first := ""
		if e != nil {
			seen++
			first = e.Level
			c.expected(*e, row, digest)
		}
		if row.Digest != "" && row.Digest != digest {
			c.problem("item %s: the row's digest is %s, the file's %s", row.ID, row.Digest, digest)
		}
		if err := c.state(ctx, row); err != nil {
			return err
		}
		return c.history(ctx, row, first)
	})
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err == nil && seen < len(c.s.expected) {
		c.problem("%d of %d items have no row", len(c.s.expected)-seen, len(c.s.expected))
	}
	return err
}

func (c *check) expected(e expected, row catalog.Row, digest string) {
	want := e.Level
	if e.posted {
		want = c.policy.Decide(row.Item(e.count), time.Now()).Target
	}
	if row.Level != want {
		c.problem("item %s: it is on %s; its last count, %s, calls for %s", row.ID, row.Level, e.count, want)
	}
	if e.posted && row.ViewCount != e.count {
		c.problem("item %s: its row has the count %s, the last was %s", row.ID, row.ViewCount, e.count)
	}
	if digest != e.digest {
		c.problem("item %s: its bytes on %s are not those it had at first", row.ID, row.Level)
	}
}

func (c *check) state(ctx context.Context, row catalog.Row) error {
	value, err := c.s.Redis.Get(ctx, c.s.Keys.State(row.ID)).Result()
	if errors.Is(err, redis.Nil) {
		return nil // never posted, or expired
	}
	if err != nil {
		return err
	}
	st, err := state.Parse(value)
	switch {
	case err != nil:
		c.problem("item %s: %w", row.ID, err)
	case st.Status != state.Done || st.DBLevel != row.Level:
		c.problem("item %s: its state is %s on %s, its row says %s", row.ID, st.Status, st.DBLevel, row.Level)
	}
	return nil
}

// history checks that the item's relocations form a chain that ends at the level of its row. first is the level where the
// chain must begin, or "" if that is unknown.
//
// An event has one history row, also if it is processed twice. After a wipe or a failover Redis may have forgotten that an
// event was done. If it is done again after later events, its row changes and no longer fits into a chain. Then history
// checks only the last move, which it finds by its time.
func (c *check) history(ctx context.Context, row catalog.Row, first string) error {
	const more = 1000
	moves, err := c.s.Catalog.History(ctx, row.ID, 0, more)
	if err != nil {
		return err
	}
	if !slices.IsSortedFunc(moves, func(a, b catalog.History) int { return b.UpdateTime.Compare(a.UpdateTime) }) { // newest first
		last := slices.MaxFunc(moves, func(a, b catalog.History) int { return a.UpdateTime.Compare(b.UpdateTime) })
		if last.NewLevel != row.Level {
			c.problem("item %s: its last move, history row %d, leads to %s, it is on %s", row.ID, last.ID, last.NewLevel, row.Level)
		}
		return nil
	}
	level := row.Level
	for _, m := range moves {
		if m.NewLevel != level {
			c.problem("item %s: history row %d leads to %s, the next step starts at %s", row.ID, m.ID, m.NewLevel, level)
		}
		level = m.OldLevel
	}
	if first != "" && level != first && len(moves) < more {
		c.problem("item %s: its history starts at %s, it started at %s", row.ID, level, first)
	}
	return nil
}

// tiers looks for files that no row names.
func (c *check) tiers() error {
	for _, l := range c.policy.Levels() {
		here := map[string]bool{}
		for _, row := range c.named {
			here[row.Filename] = row.Level == l.Name
		}
		root := c.s.at(l.Path)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			if name == item.MetaFolder {
				return fs.SkipDir
			}
			mine, known := here[name]
			switch {
			case known && !mine:
				c.problem("level %s: %s lies here too, its row names another level", l.Name, name)
			case !known && !d.IsDir():
				c.problem("level %s: no row names %s", l.Name, name)
			}
			if known && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *check) dead(ctx context.Context) error {
	for _, k := range c.s.Keys.Each() {
		entries, err := c.s.Redis.XRange(ctx, k.Dead(), "-", "+").Result()
		if err != nil {
			return err
		}
		for _, e := range entries {
			c.problem("dead: item %v at stage %v: %v", e.Values["cid"], e.Values["stage"], e.Values["error"])
		}
	}
	return nil
}
