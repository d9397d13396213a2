package state_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

const (
	ttl   = 2 * time.Hour
	lease = time.Minute
	// hostile looks like the end of a state, once as text and once as JSON.
	hostile = `a, "b", "worker_id": "y", "status": "done", "event_id": "", "entry_id": "99-99", "updated_at": "x"}\", 😀` + "\x7f\n"
)

var posted = time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.UTC)

// world is a Store on a real Redis, with a prefix of its own and all groups.
type world struct {
	*testing.T
	*state.Store
	rdb  redis.UniversalClient
	keys state.Keys
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, testserver.Redis(t), testserver.Prefix(t))
}

func newWorldOn(t *testing.T, url, prefix string) *world {
	t.Helper()
	rdb, err := state.Connect(url, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	w := &world{T: t, rdb: rdb, keys: state.NewKeys(prefix)}
	w.Store = state.NewStore(state.Options{Redis: rdb, Keys: w.keys, TTL: ttl, Lease: lease})
	for stream, group := range map[string]string{
		w.keys.Views(): state.GroupRelocator, w.keys.Relocated(): state.GroupCommitter, w.keys.Committed(): state.GroupReleaser,
	} {
		w.must(rdb.XGroupCreateMkStream(t.Context(), stream, group, "0").Err())
	}
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func uuid(n int) string { return fmt.Sprintf("01900000-0000-7000-8000-%012d", n) }

func view(n int, id item.ID, count item.Count, target, level, filename string) event.View {
	return event.View{EventID: uuid(n), ID: id, Count: count, Target: target, DBLevel: level, Filename: filename, PostedAt: posted}
}

// append appends one event and makes it pending with the consumer "me".
func (w *world) append(v event.View) (entry string) {
	w.Helper()
	ids, err := w.Append(w.Context(), []event.View{v})
	w.must(err)
	w.read(w.keys.Of(v.ID).Views(), state.GroupRelocator)
	return ids[0]
}

// read makes everything unread pending with the consumer "me".
func (w *world) read(stream, group string) (entries []redis.XMessage) {
	w.Helper()
	s, err := w.rdb.XReadGroup(w.Context(), &redis.XReadGroupArgs{Group: group, Consumer: "me", Streams: []string{stream, ">"}, Block: -1}).Result()
	if err == redis.Nil {
		return nil
	}
	w.must(err)
	return s[0].Messages
}

func (w *world) pending(stream, group string) (ids []string) {
	w.Helper()
	ps, err := w.rdb.XPendingExt(w.Context(), &redis.XPendingExtArgs{Stream: stream, Group: group, Start: "-", End: "+", Count: 100}).Result()
	w.must(err)
	for _, p := range ps {
		ids = append(ids, p.ID)
	}
	return ids
}

// entries lists a stream.
func (w *world) entries(stream string) (ids []string, entries []map[string]string) {
	w.Helper()
	ms, err := w.rdb.XRange(w.Context(), stream, "-", "+").Result()
	w.must(err)
	for _, m := range ms {
		e := map[string]string{}
		for k, v := range m.Values {
			e[k] = v.(string)
		}
		ids, entries = append(ids, m.ID), append(entries, e)
	}
	return ids, entries
}

func (w *world) length(stream string) int64 {
	w.Helper()
	n, err := w.rdb.XLen(w.Context(), stream).Result()
	w.must(err)
	return n
}

// set writes a state as it may stand in Redis.
func (w *world) set(s state.State) {
	w.Helper()
	life := time.Duration(0)
	if s.Status == state.Done {
		life = time.Minute
	}
	w.must(w.rdb.Set(w.Context(), w.keys.State(s.ID), s.JSON(), life).Err())
}

func (w *world) get(id item.ID) state.State {
	w.Helper()
	s, ok, err := w.Get(w.Context(), id)
	w.must(err)
	if !ok {
		w.Fatalf("no state of %s: %q", id, w.raw(id))
	}
	return s
}

func (w *world) raw(id item.ID) string {
	w.Helper()
	v, err := w.rdb.Get(w.Context(), w.keys.State(id)).Result()
	if err != nil && err != redis.Nil {
		w.Fatal(err)
	}
	return v
}

// lives checks a state's time to live: 0 is for ever.
func (w *world) lives(id item.ID, want time.Duration) {
	w.Helper()
	d, err := w.rdb.TTL(w.Context(), w.keys.State(id)).Result()
	w.must(err)
	if want == 0 && d != -1 || want != 0 && (d > want || d < want-time.Minute/2) {
		w.Errorf("the state lives for %s, not %s", d, want)
	}
}

// same compares all but the time of the last change.
func (w *world) same(got, want state.State) {
	w.Helper()
	got.UpdatedAt = want.UpdatedAt
	if got != want {
		w.Errorf("the state is\n%+v, not\n%+v", got, want)
	}
}

func (w *world) holder(id item.ID) state.Token {
	w.Helper()
	h, err := w.Holder(w.Context(), id)
	w.must(err)
	return h
}

func (w *world) sameEntry(got map[string]string, fields []string) {
	w.Helper()
	want := map[string]string{}
	for i := 0; i < len(fields); i += 2 {
		want[fields[i]] = fields[i+1]
	}
	if !maps.Equal(got, want) {
		w.Errorf("the entry is\n%v, not\n%v", got, want)
	}
}

// unreadable are values that no script takes for a state.
var unreadable = map[string]string{
	"empty":              ``,
	"not JSON":           `hello`,
	"other spacing":      `{"cid":"7","count":"1","target":"silver","db_level":"bronze","filename":"f","worker_id":null,"status":"update","event_id":"e","entry_id":"99999999999999-0","updated_at":"2026-01-01T00:00:00.000000Z"}`,
	"a count of letters": strings.Replace(state.State{ID: 7, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update, EntryID: "99999999999999-0"}.JSON(), `"count": "0"`, `"count": "x"`, 1),
	"cut off":            state.State{ID: 7, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update, EntryID: "99999999999999-0"}.JSON()[:100],
	"only seven":         string(state.State{ID: 7, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update}.AppendAnswer(nil)),
	"followed by more":   state.State{ID: 7, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update, EntryID: "99999999999999-0"}.JSON() + " ",
}

var filenames = map[string]string{"plain": "g.mp4", "hostile": hostile, "quotes": `"\"\\""`, "long": strings.Repeat("😀", 700)}

// storeWithoutRedis makes a Store whose Redis does not answer.
func storeWithoutRedis(t *testing.T) *state.Store {
	t.Helper()
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	gate.Close()
	rdb, err := state.Connect(url, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return state.NewStore(state.Options{Redis: rdb, Keys: state.NewKeys("x:"), TTL: ttl, Lease: lease})
}
