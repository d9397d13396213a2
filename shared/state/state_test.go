package state_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/state"
)

func TestAnAnswerIsWhatPythonsJSONDumpsWrites(t *testing.T) {
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
func TestAnAnswerIsByteForByteAsPythonHasWrittenIt(t *testing.T) {
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
			s.ID, _ = content.ParseID(text(v[0]))
			s.Count, _ = content.ParseCount(text(v[1]))
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

func TestAStateIsReadAsItWasWritten(t *testing.T) {
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

func TestAStateThatIsNoneIsAnErrorThatNamesTheField(t *testing.T) {
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

func TestTheNewerOfTwoEntriesIsFoundByDigits(t *testing.T) {
	ascending := []string{"", "0-0", "0-1", "0-9", "0-10", "9-1", "9-10", "10-0", "10-18446744073709551614", "10-18446744073709551615",
		"1795392109598-0", "9007199254740992-0", "9007199254740993-0", "9223372036854775808-0", "18446744073709551615-18446744073709551615"}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := state.Newer(a, b); got != (i > j) {
				t.Errorf("Newer(%q, %q) is %v", a, b, got)
			}
		}
	}
}

func TestKeysAreThoseOfTheContract(t *testing.T) {
	k := state.NewKeys("p:")
	for got, want := range map[string]string{
		k.Views(): "p:views", k.Relocated(): "p:relocated", k.Committed(): "p:committed", k.Dead(): "p:dead", k.Paused(): "p:paused",
		k.Content(7): "p:content:7", k.Lock(7): "p:lock:7", k.Progress(7): "p:progress:7",
	} {
		if got != want {
			t.Errorf("%s is not %s", got, want)
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

func TestTheStateOfANewEventSaysWhetherAMoveIsCalledFor(t *testing.T) {
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

func TestConnectNamesAWrongURL(t *testing.T) {
	for _, url := range []string{"", "http://x", "redis://x:notaport"} {
		if c, err := state.Connect(url, -1); err == nil {
			c.Close()
			t.Errorf("%q was taken", url)
		}
	}
}
