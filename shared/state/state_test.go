package state_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

func TestAnAnswerHasTheFormOfPythonsJSONDumps(t *testing.T) {
	worked := state.State{ID: 7, Count: 1964, Target: "silver", DBLevel: "bronze", Filename: "g.mp4", Status: state.Update}
	for _, c := range []struct {
		name string
		with func(*state.State)
		want string
	}{
		{"the example of the contract", func(*state.State) {},
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "g.mp4", "worker_id": null, "status": "update"}`},
		{"a worker and done", func(s *state.State) { s.WorkerID, s.Status = "host-1", state.Done },
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "g.mp4", "worker_id": "host-1", "status": "done"}`},
		{"what HTML would escape", func(s *state.State) { s.Filename = "</script>&'" },
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "</script>&'", "worker_id": null, "status": "update"}`},
		{"quotes and backslashes", func(s *state.State) { s.Filename = `a"b\` },
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "a\"b\\", "worker_id": null, "status": "update"}`},
		{"control characters and DEL", func(s *state.State) { s.Filename = "\x00\x1f\b\t\n\v\f\r\x7f~" },
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "\u0000\u001f\b\t\n\u000b\f\r\u007f~", "worker_id": null, "status": "update"}`},
		{"beyond ASCII and beyond 16 bits", func(s *state.State) { s.Filename = "é日😀" },
			`{"cid": "7", "count": "1964", "target": "silver", "db_level": "bronze", "filename": "\u00e9\u65e5\ud83d\ude00", "worker_id": null, "status": "update"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := worked
			c.with(&s)
			if got := string(s.AppendAnswer(nil)); got != c.want {
				t.Errorf("got\n%s, not\n%s", got, c.want)
			}
		})
	}
}

// dumps.txt was written by Python (testdata/dumps.py).
func TestAnAnswerEqualsPythonsOutputByteForByte(t *testing.T) {
	f, err := os.Open("testdata/dumps.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	text := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var texts, answers int
	whole := false
	for lines.Scan() {
		in := lines.Text()
		if in == "" && texts > 0 { // the first text is the empty one
			whole = true
			continue
		}
		lines.Scan()
		want := lines.Text()
		s := state.State{ID: 1, Filename: "", Status: state.Done}
		if !whole {
			texts++
			s.Filename = text(in)
			want = `{"cid": "1", "count": "0", "target": "", "db_level": "", "filename": ` + want + `, "worker_id": null, "status": "done"}`
		} else {
			answers++
			v := strings.Split(in, "|")
			s.ID, _ = item.ParseID(text(v[0]))
			s.Count, _ = item.ParseCount(text(v[1]))
			s.Target, s.DBLevel, s.Filename, s.Status = text(v[2]), text(v[3]), text(v[4]), state.Status(text(v[6]))
			if v[5] != "-" {
				s.WorkerID = text(v[5])
			}
		}
		if got := string(s.AppendAnswer(nil)); got != want {
			t.Errorf("%q: got\n%s, not\n%s", in, got, want)
		}
	}
	if texts < 20 || answers < 3 {
		t.Fatalf("%d texts and %d answers were compared", texts, answers)
	}
}

func TestAStateIsReadAsWritten(t *testing.T) {
	s := state.State{
		ID: 1<<63 - 1, Count: 1<<63 - 1, Target: "gold", DBLevel: "bronze", Filename: hostile, WorkerID: `w"\1`, Status: state.Update,
		EventID: uuid(1), EntryID: "18446744073709551615-18446744073709551615", UpdatedAt: posted,
	}
	got, err := state.Parse(s.JSON())
	if err != nil {
		t.Fatal(err)
	}
	if got != s {
		t.Errorf("got\n%+v, not\n%+v", got, s)
	}
	if !strings.HasPrefix(s.JSON(), string(s.AppendAnswer(nil)[:len(s.AppendAnswer(nil))-1])) {
		t.Error("the seven fields do not come first")
	}
	s.WorkerID = ""
	if got, err = state.Parse(s.JSON()); err != nil || got != s {
		t.Errorf("got\n%+v, %v, not\n%+v", got, err, s)
	}
}

func TestAnErrorNamesTheFieldThatMakesAStateUnreadable(t *testing.T) {
	good := state.State{ID: 7, Count: 5, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update, EventID: uuid(1), EntryID: "1-0", UpdatedAt: posted}.JSON()
	for name, c := range map[string]struct{ value, names string }{
		"empty":      {"", "state"},
		"no object":  {"7", "state"},
		"cid":        {strings.Replace(good, `"cid": "7"`, `"cid": "07"`, 1), "cid"},
		"count":      {strings.Replace(good, `"count": "5"`, `"count": "-5"`, 1), "count"},
		"updated_at": {strings.Replace(good, `"updated_at": "2026`, `"updated_at": "x2026`, 1), "updated_at"},
	} {
		if _, err := state.Parse(c.value); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysAreThoseOfTheContract(t *testing.T) {
	k := state.NewKeys("p:")
	for got, want := range map[string]string{
		k.Views(): "p:views", k.Relocated(): "p:relocated", k.Committed(): "p:committed", k.Dead(): "p:dead", k.Paused(): "p:paused",
		k.State(7): "p:content:7", k.Lock(7): "p:lock:7", k.Progress(7): "p:progress:7",
		k.Backoff(state.GroupReleaser): "p:backoff:releaser",
	} {
		if got != want {
			t.Errorf("%s is not %s", got, want)
		}
	}
}

func TestTheKeysOfAPartitionHaveItsHashTag(t *testing.T) {
	k := state.NewKeys("p:").Partitioned(16)
	p7 := k.In(7)
	id := item.ID(1)
	for k.Partition(id) != 7 {
		id++
	}
	for got, want := range map[string]string{
		p7.Views(): "p:{p07}:views", p7.Relocated(): "p:{p07}:relocated", p7.Committed(): "p:{p07}:committed", p7.Dead(): "p:{p07}:dead",
		k.Of(id).Views(): "p:{p07}:views", p7.Backoff("g"): "p:{p07}:backoff:g", k.Paused(): "p:paused", p7.Paused(): "p:paused",
		k.State(id): "p:{p07}:content:" + id.String(), k.Lock(id): "p:{p07}:lock:" + id.String(), k.Progress(id): "p:{p07}:progress:" + id.String(),
		k.Partitioned(1).Views(): "p:views", k.Partitioned(1).State(7): "p:content:7", state.PartitionName(123): "p123",
	} {
		if got != want {
			t.Errorf("%s is not %s", got, want)
		}
	}
	for p, k := range k.Each() {
		for _, stream := range []string{k.Views(), k.Relocated(), k.Committed(), k.Dead()} {
			if back, q, ok := k.OfStream(stream); !ok || q != p || back != k {
				t.Errorf("%s is of partition %d, %v", stream, q, ok)
			}
		}
	}
	for _, stream := range []string{"", "views", "q:{p07}:views", "p:views", "p:{p16}:views", "p:{p7}:views", "p:{p07}:lock:7", "p:p07:views"} {
		if _, _, ok := k.OfStream(stream); ok {
			t.Errorf("%s was taken for a stream", stream)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a stream was named without its partition")
		}
	}()
	k.Views()
}

// The partition of an item must never change: these are zlib.crc32(b"1") % 16 and so on, as Python computes them.
func TestThePartitionOfAnItemIsFixed(t *testing.T) {
	k := state.NewKeys("p:").Partitioned(16)
	for id, want := range map[item.ID]int{1: 7, 2: 13, 7: 2, 1964: 7, 9223372036854775807: 14} {
		if got := k.Partition(id); got != want {
			t.Errorf("%s is in %d, not in %d", id, got, want)
		}
	}
	for _, n := range []int{2, 16, 64, 100} {
		k := k.Partitioned(n)
		for _, step := range []item.ID{1, 2, 10, 16, 1000} {
			counts := make([]int, n)
			for i := range item.ID(1000 * n) {
				counts[k.Partition(1+i*step)]++
			}
			if slices.Min(counts) < 700 || slices.Max(counts) > 1300 {
				t.Errorf("%d partitions, ids in steps of %d: from %d to %d items instead of 1000", n, step, slices.Min(counts), slices.Max(counts))
			}
		}
	}
}

func FuzzAnyFilenameSurvivesTheStatesJSON(f *testing.F) {
	for _, s := range []string{"g.mp4", hostile, "\x00\x7f\"\\/", "\u2028😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, filename string) {
		s := state.State{ID: 1, Target: "a", DBLevel: "b", Filename: filename, Status: state.Done, EventID: uuid(1), EntryID: "1-0", UpdatedAt: posted}
		got, err := state.Parse(s.JSON())
		if err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(filename) && got != s {
			t.Errorf("got %+v", got)
		}
		answer := s.AppendAnswer(nil)
		if !json.Valid(answer) {
			t.Errorf("not JSON: %s", answer)
		}
		for _, c := range answer {
			if c < ' ' || c > '~' {
				t.Errorf("not printable ASCII: %q", answer)
			}
		}
	})
}

func TestTheStateOfANewEventSaysWhetherTheItemMustMove(t *testing.T) {
	v := view(1, 7, 5, "silver", "bronze", "f")
	want := state.State{ID: 7, Count: 5, Target: "silver", DBLevel: "bronze", Filename: "f", Status: state.Update, EventID: uuid(1), UpdatedAt: posted}
	if got := state.NewState(v); got != want {
		t.Errorf("got %+v", got)
	}
	v.DBLevel, want.DBLevel, want.Status = "silver", "silver", state.Done
	if got := state.NewState(v); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestConnectRefusesAWrongURL(t *testing.T) {
	for _, url := range []string{"", "http://x", "redis://x:notaport", "redis://a:1,b:2", "redis://:pw@a:1,b:2/0", "redis+cluster://", "redis+cluster://a:1,",
		"redis+cluster://a:1,b:port", "redis+cluster://a:1/3", "redis+cluster://a:1?read_only=true", "redis+cluster://a:1?max_redirects=9",
		"unix+cluster:///x", "redis+cluster://a b:1"} {
		if c, err := state.Connect(url, -1); err == nil {
			c.Close()
			t.Errorf("%q was taken", url)
		}
	}
}

func TestConnectAcceptsTheURLOfACluster(t *testing.T) {
	c, err := state.Connect("rediss+cluster://me:p%40ss@a:1,b,[::1]:3/0?dial_timeout=3s", -1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := c.(*redis.ClusterClient).Options()
	if !slices.Equal(o.Addrs, []string{"a:1", "b:6379", "[::1]:3"}) || o.Username != "me" || o.Password != "p@ss" || o.TLSConfig == nil {
		t.Errorf("%q, %s, %s", o.Addrs, o.Username, o.Password)
	}
}

func TestServicesMustAgreeOnTheNumberOfPartitions(t *testing.T) {
	w := newWorld(t)
	with := func(n int) *state.Store {
		return state.NewStore(state.Options{Redis: w.rdb, Keys: w.keys.Partitioned(n), TTL: ttl, Lease: lease})
	}
	// A stream without partitions may have entries that no consumer would read.
	if err := with(4).Agree(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), w.keys.Views()) {
		t.Errorf("beside a stream of a single partition: %v", err)
	}
	w.must(w.rdb.Del(t.Context(), w.keys.Views()).Err())
	w.must(with(4).Agree(t.Context()))
	w.must(with(4).Agree(t.Context()))
	if n := w.rdb.Get(t.Context(), w.keys.Count()).Val(); n != "4" {
		t.Errorf("recorded is %q", n)
	}
	for _, n := range []int{1, 2, 8} {
		s := with(n)
		if err := s.Agree(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "TIERFLOW_PARTITIONS") {
			t.Errorf("%d: %v", n, err)
		}
		if _, err := s.Append(t.Context(), []event.View{view(1, 7, 5, "silver", "bronze", "f")}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%d: an append: %v", n, err)
		}
		if n := w.length(s.Keys().Of(7).Views()); n != 0 {
			t.Errorf("%d: %d entries were appended", n, n)
		}
	}
	// A wiped Redis takes another number, and a service with the old one gets an error.
	old := with(4)
	w.must(old.Agree(t.Context()))
	w.must(w.rdb.Del(t.Context(), w.keys.Count()).Err())
	w.must(with(8).Agree(t.Context()))
	if err := old.Agree(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("the old number: %v", err)
	}
	if _, err := old.Append(t.Context(), []event.View{view(1, 7, 5, "silver", "bronze", "f")}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("an append with the old number: %v", err)
	}
}
