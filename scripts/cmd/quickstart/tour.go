package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// patience is how long the tour waits for a move before it gives up. It is far longer than any move takes.
const patience = time.Minute

// samples are the items of the tour, with the ids 1 to 7.
var samples = []stack.Sample{
	{ID: 1, Filename: "videos/trailer.mp4", Level: "bronze", Size: 4 << 20},
	{ID: 2, Filename: "images/poster.jpg", Level: "bronze", Size: 310_000},
	{ID: 3, Filename: "hls/concert", Level: "bronze", Parts: concert()},
	{ID: 4, Filename: "audio/jingle.ogg", Level: "silver", Size: 64 << 10},
	{ID: 5, Filename: "videos/keynote.mp4", Level: "gold", Size: 8 << 20},
	{ID: 6, Filename: "notes/readme.txt", Level: "bronze", Size: 27},
	{ID: 7, Filename: "g.mp4", Level: "bronze", Size: 1_900_000},
}

// concert is an HLS package in two qualities.
func concert() map[string]int64 {
	parts := map[string]int64{"master.m3u8": 412}
	for quality, size := range map[string]int64{"360p": 96 << 10, "720p": 384 << 10} {
		parts[quality+"/index.m3u8"] = 905
		for n := range 6 {
			parts[fmt.Sprintf("%s/%03d.ts", quality, n)] = size
		}
	}
	return parts
}

// view is a count that the tour posts, and the level to which it brings the item.
type view struct {
	id    item.ID
	count item.Count
	from  string // equal to level if nothing moves
	level string
}

// tour starts the services, adds the items, posts views and shows the moves. Then it checks the result or keeps showing
// moves.
func (q *quickstart) tour(ctx context.Context) error {
	s := q.stack
	levels, err := s.Catalog.Levels(ctx)
	if err != nil {
		return err
	}
	for i, l := range levels {
		word := ""
		if i == 0 {
			word = "tiers"
		}
		upTo := fmt.Sprintf("%d to %d", l.Min, l.Max)
		if l.Max == policy.Open {
			upTo = fmt.Sprintf("%d and up", l.Min)
		}
		q.out.line(word, "%-6s  counts %-12s  %s", l.Name, upTo, l.Path)
	}
	if q.otherFS {
		q.out.line("", "gold is another file system: what moves there and back is copied, digested and read back")
	} else {
		q.out.line("", "all on one file system: what moves is linked, not copied")
	}
	var bytes int64
	for _, p := range samples {
		bytes += p.Bytes()
	}
	if err := s.Add(ctx, samples...); err != nil {
		return err
	}
	q.out.line("items", "%d, %s, written to their tiers and inserted with SQL", len(samples), size(bytes))
	if err := s.Start(ctx); err != nil {
		return err
	}
	q.out.line("services", "ready %s after the start: http://%s", short(time.Since(q.began)), s.API.Addr)
	q.out.line("setting", "TIERFLOW_RELEASE_GRACE=%s: an old copy stays that long after the commit, for its readers (5s by default)", grace)

	moves := make(chan move)
	followCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	followed := make(chan error, 1)
	go func() { followed <- follow(followCtx, s, moves) }()
	t := tour{quickstart: q, moves: moves, followed: followed}

	q.out.heading("A count of 1964 calls for silver")
	if err := t.post(ctx, view{7, 1964, "bronze", "silver"}); err != nil {
		return err
	}
	q.out.heading("2000 and up call for gold, in a batch this time")
	if err := t.batch(ctx, []view{
		{1, 52_000, "bronze", "gold"}, {2, 2000, "bronze", "gold"}, {3, 1_000_000, "bronze", "gold"},
	}); err != nil {
		return err
	}
	q.out.heading("Interest fades, and counts fall")
	if err := t.post(ctx, view{5, 12, "gold", "bronze"}); err != nil {
		return err
	}
	if err := t.post(ctx, view{3, 1500, "gold", "silver"}); err != nil {
		return err
	}
	q.out.heading("A count in the range of where it lies moves nothing")
	if err := t.post(ctx, view{4, 1001, "silver", "silver"}); err != nil {
		return err
	}

	q.out.heading("At rest")
	settled, cancelSettled := context.WithTimeout(ctx, patience)
	defer cancelSettled()
	if err := s.CheckSettled(settled); err != nil {
		return fmt.Errorf("the result is wrong: %w", err)
	}
	q.out.line("", "the old copies are gone; each item lies on one tier, with the bytes it had at first")
	if err := t.table(ctx); err != nil {
		return err
	}
	if q.Once {
		return t.checkHistory(ctx)
	}
	t.tryNext()
	for {
		if _, err := t.next(ctx); err != nil {
			return err
		}
	}
}

// tour holds the progress of the tour.
type tour struct {
	*quickstart
	moves     <-chan move
	followed  <-chan error
	seen      int
	committed int // how many moves the posted views have called for
}

// client returns a client of the api that prints the answers.
func (t *tour) client() *client.Client {
	c := t.stack.Client()
	c.OnAnswer = func(body []byte) { t.out.answer(strings.TrimSpace(string(body))) }
	return c
}

// post posts one view by the call of the original system, and waits for its move.
func (t *tour) post(ctx context.Context, v view) error {
	t.out.command(fmt.Sprintf("curl %s/post_sentence -d \"cid=%s&count=%s\"", t.stack.API.Addr, v.id, v.count))
	if _, err := t.client().PostSentence(ctx, client.View{CID: v.id, Count: v.count}); err != nil {
		return err
	}
	t.stack.Posted(v.id, v.count)
	return t.await(ctx, []view{v})
}

// batch posts several views at once, and waits for their moves.
func (t *tour) batch(ctx context.Context, views []view) error {
	var lines strings.Builder
	var batch []client.View
	for _, v := range views {
		fmt.Fprintf(&lines, "{\"cid\":%s,\"count\":%s}\n", v.id, v.count)
		batch = append(batch, client.View{CID: v.id, Count: v.count})
	}
	t.out.command(fmt.Sprintf("curl %s/v1/views -H 'Content-Type: application/x-ndjson' --data-binary \\\n    '%s'",
		t.stack.API.Addr, strings.ReplaceAll(strings.TrimSpace(lines.String()), "\n", "\n     ")))
	if _, err := t.client().PostViews(ctx, batch); err != nil {
		return err
	}
	for _, v := range views {
		t.stack.Posted(v.id, v.count)
	}
	return t.await(ctx, views)
}

// await shows moves until it has shown all that the views call for.
func (t *tour) await(ctx context.Context, views []view) error {
	waiting := map[item.ID]view{}
	for _, v := range views {
		if v.from != v.level {
			waiting[v.id] = v
			t.committed++
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for len(waiting) > 0 {
		m, err := t.next(ctx)
		if err != nil {
			return fmt.Errorf("while waiting for %v: %w", waiting, err)
		}
		if v, ok := waiting[m.id]; ok && m.from == v.from && m.to == v.level {
			delete(waiting, m.id)
		}
	}
	return nil
}

// next waits for a move and shows it.
func (t *tour) next(ctx context.Context) (move, error) {
	select {
	case m := <-t.moves:
		t.out.move(m)
		if t.seen++; t.seen == 1 {
			t.out.answer(t.out.paint("2", fmt.Sprintf("the first move, %s after the start", short(time.Since(t.began)))))
		}
		return m, nil
	case err := <-t.followed:
		return move{}, errors.Join(errors.New("cannot follow the streams"), err)
	case <-ctx.Done():
		return move{}, ctx.Err()
	}
}

// table prints where everything is.
func (t *tour) table(ctx context.Context) error {
	rows, err := t.stack.Catalog.List(ctx, "", 0, len(samples))
	if err != nil {
		return err
	}
	policy, err := t.stack.Catalog.Policy(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(t.out)
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  cid\tcount\tlevel\tpath")
	for _, row := range rows {
		count := "-" // never posted
		value, _ := t.stack.Redis.Get(ctx, t.stack.Keys.State(row.ID)).Result()
		if st, err := state.Parse(value); err == nil {
			count = st.Count.String()
		}
		level, _ := policy.Level(row.Level)
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", row.ID, count, row.Level, filepath.Join(level.Path, row.Filename))
	}
	return w.Flush()
}

// checkHistory checks the number of moves, which stack.CheckSettled does not know.
func (t *tour) checkHistory(ctx context.Context) error {
	var rows int
	if err := t.stack.DB().QueryRowContext(ctx, "SELECT COUNT(*) FROM update_history").Scan(&rows); err != nil {
		return err
	}
	if rows != t.committed || t.seen != t.committed {
		return fmt.Errorf("the result is wrong: the views called for %d moves, %d were seen and update_history has %d",
			t.committed, t.seen, rows)
	}
	t.out.heading("All is as it should be")
	t.out.line("", "files, rows, %d rows of history and the streams were checked; it took %s", rows, short(time.Since(t.began)))
	return nil
}

// tryNext prints commands that the user could try next.
func (t *tour) tryNext() {
	api, keys := t.stack.API.Addr, t.stack.Keys
	t.out.heading("Try next")
	redis, sql := redisCommand(t.redis.address), mysqlCommand(t.mysql.address)
	for _, l := range [][2]string{
		{"post", fmt.Sprintf(`curl %s/post_sentence -d "cid=2&count=700"`, api)},
		{"settled?", fmt.Sprintf(`curl %s/update_sentence -d "cid=2"`, api)},
		{"where", fmt.Sprintf(`curl %s/v1/contents/2/location`, api)},
		{"moves", fmt.Sprintf(`curl %s/v1/contents/2/history`, api)},
		{"files", fmt.Sprintf(`find %s -type f -not -path '*/.tierflow/*'`, strings.Join(t.folders(), " "))},
		{"redis", fmt.Sprintf(`%s GET %s`, redis, keys.State(7))},
		{"", fmt.Sprintf(`%s XRANGE %s - +`, redis, keys.Views())},
		{"", fmt.Sprintf(`%s XINFO GROUPS %s`, redis, keys.Relocated())},
		{"mysql", fmt.Sprintf(`%s -e 'SELECT * FROM contents'`, sql)},
		{"", fmt.Sprintf(`%s -e 'SELECT * FROM update_history'`, sql)},
		{"logs", fmt.Sprintf(`tail -f %s`, filepath.Join(t.dir, "*-1.log"))},
	} {
		t.out.line(l[0], "%s", l[1])
	}
	for _, client := range []string{redis, sql} {
		name, _, _ := strings.Cut(client, " ")
		if _, err := exec.LookPath(name); err != nil {
			t.out.line("", "(%s is not on this machine)", name)
		}
	}
	t.out.line("web", "http://%s", api)
	t.out.heading("Running until Ctrl-C; what moves is shown here")
}

// folders are the tiers' roots.
func (t *tour) folders() []string {
	all := []string{filepath.Join(t.dir, "tiers")}
	for _, path := range t.tiers {
		all = append(all, path)
	}
	return all
}
