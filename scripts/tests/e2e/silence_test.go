package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// waitAttention waits until the status has a warning with these texts, or none with the first where gone is true.
func (w *world) waitAttention(gone bool, texts ...string) {
	w.t.Helper()
	testserver.Eventually(w.t, fmt.Sprintf("the status says %q: %v", texts, !gone), patience, func() error {
		s, err := w.Client().Status(w.t.Context())
		if err != nil {
			return err
		}
		found := slices.ContainsFunc(s.Attention, func(a client.Attention) bool {
			return a.Kind == "warning" && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(a.What, text) })
		})
		if found == gone {
			return fmt.Errorf("%+v", s.Attention)
		}
		return nil
	})
}

// mustMove posts a count and waits until the item has moved.
func (w *world) mustMove(id item.ID, count item.Count, level string) {
	w.t.Helper()
	w.post(id, count)
	w.waitLevel(id, level)
}

func TestTwoWorkersWithOneIDAreNamedUntilOneOfThemStops(t *testing.T) {
	w := start(t, options{relocators: 2, committers: 2, stopped: true})
	for _, services := range [][]*stack.Service{w.Relocators, w.Committers} {
		services[1].Settings["TIERFLOW_WORKER_ID"] = services[0].Settings["TIERFLOW_WORKER_ID"]
	}
	w.must("start", w.Start(t.Context()))
	const setting = "TIERFLOW_WORKER_ID"
	for _, s := range slices.Concat(w.Relocators, w.Committers) {
		w.waitWarning(s, "worker-id", setting)
	}
	w.waitAttention(false, "another relocator has the id relocator-1", setting)
	w.waitAttention(false, "another committer has the id committer-1", setting)
	w.add(1, "bronze", 1000)
	w.mustMove(1, 1500, "silver")

	w.must("pause the second relocator", w.Relocators[1].Pause())
	w.waitWarning(w.Relocators[0], "worker-id", "")
	w.must("resume it", w.Relocators[1].Resume())
	w.waitWarning(w.Relocators[0], "worker-id", setting)
	w.waitWarning(w.Relocators[1], "worker-id", setting)
	w.must("kill it", w.Relocators[1].Kill())
	_, err := w.Committers[1].Terminate(t.Context())
	w.must("stop the second committer", err)
	w.waitWarning(w.Relocators[0], "worker-id", "")
	w.waitWarning(w.Committers[0], "worker-id", "")

	// A restart with the same id is no second worker, nor is one that was paused.
	w.must("kill the first relocator", w.Relocators[0].Kill())
	before := len(w.logLines(w.Relocators[0]))
	w.must("start it again", w.Relocators[0].Start(t.Context()))
	w.must("pause it", w.Relocators[0].Pause())
	testserver.Eventually(t, "it counts as dead", patience, func() error {
		s, err := w.Client().Status(t.Context())
		if err == nil && !slices.ContainsFunc(s.Attention, func(a client.Attention) bool { return a.Kind == "no-relocator" }) {
			err = fmt.Errorf("%+v", s.Attention)
		}
		return err
	})
	w.must("resume it", w.Relocators[0].Resume())
	w.mustMove(1, 5000, "gold")
	w.checkSettled()
	for _, l := range w.logLines(w.Relocators[0])[before:] {
		if l.fields["what"] == `"worker-id"` || strings.HasPrefix(l.Message, "the clock of Redis was set") {
			t.Errorf("alone, after a restart and a pause: %+v", l)
		}
	}
}

func TestAGroupThatNobodyConsumesIsNamedUntilItIsRemoved(t *testing.T) {
	w := start(t, options{})
	w.add(1, "bronze", 1000)
	for _, key := range []string{w.Keys.Views(), w.Keys.Relocated()} {
		w.must("make a group", w.Redis.XGroupCreateMkStream(t.Context(), key, "audit", "$").Err())
	}
	w.mustMove(1, 1500, "silver")
	command := "XGROUP DESTROY " + w.Keys.Views() + " audit"
	w.waitWarning(w.Relocators[0], "groups", command)
	w.waitWarning(w.Committers[0], "groups", "XGROUP DESTROY "+w.Keys.Relocated()+" audit")
	w.waitAttention(false, command)
	w.must("remove the group", w.Redis.XGroupDestroy(t.Context(), w.Keys.Views(), "audit").Err())
	w.waitWarning(w.Relocators[0], "groups", "")
	w.waitAttention(true, command)
}

// logLine is a line of a service's log.
type logLine struct {
	Level, Message string
	fields         map[string]string // as JSON
}

// key names what a line is about. Lines about entries, and the times and words of an error, differ each time.
func (l logLine) key() string {
	key := l.Level + " " + l.Message
	for _, name := range slices.Sorted(maps.Keys(l.fields)) {
		if slices.Contains([]string{"what", "level", "stream", "group"}, name) {
			key += " " + name + "=" + l.fields[name]
		}
	}
	return key
}

func (w *world) logLines(s *stack.Service) (lines []logLine) {
	w.t.Helper()
	text, err := os.ReadFile(s.LogFile())
	w.must("read a log", err)
	for line := range strings.Lines(string(text)) {
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(line), &fields) != nil {
			continue // of the race detector, or of a crash
		}
		l := logLine{fields: map[string]string{}}
		for name, value := range fields {
			switch name {
			case "level":
				w.must("read a level", json.Unmarshal(value, &l.Level))
			case "msg":
				w.must("read a message", json.Unmarshal(value, &l.Message))
			default:
				l.fields[name] = string(value)
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// loops are the messages of what a service tries again while a server is away: that it begins, and that it ends.
var loops = []struct{ server, service, begins, ends string }{
	{"Redis", "relocator", "reads of the stream wait and are tried again", "reads of the stream wait no more"},
	{"Redis", "relocator", "heartbeats fail: this worker keeps its partitions and takes no new ones", "heartbeats are sent again"},
	{"Redis", "relocator", "reports of this program wait and are tried again", "reports of this program wait no more"},
	{"Redis", "relocator", "whether moves are paused cannot be read now", "whether moves are paused can be read again"},
	{"Redis", "relocator", "a check fails", "a check passes again"},
	{"Redis", "committer", "reads of the stream wait and are tried again", "reads of the stream wait no more"},
	{"Redis", "committer", "heartbeats fail: this worker keeps its partitions and takes no new ones", "heartbeats are sent again"},
	{"Redis", "committer", "reports of this program wait and are tried again", "reports of this program wait no more"},
	{"Redis", "committer", "a check fails", "a check passes again"},
	{"Redis", "api", "reads of commits wait and are tried again", "reads of commits wait no more"},
	{"Redis", "api", "reads for the live view wait and are tried again", "reads for the live view wait no more"},
	{"Redis", "api", "reports of this program wait and are tried again", "reports of this program wait no more"},
	{"Redis", "api", "a check fails", "a check passes again"},
	{"MySQL", "relocator", "nothing is swept", "tiers are swept again"},
	{"MySQL", "relocator", "a check fails", "a check passes again"},
	{"MySQL", "committer", "a check fails", "a check passes again"},
	{"MySQL", "api", "MySQL does not answer: cached items are used", "MySQL answers again"},
	{"MySQL", "api", "a check fails", "a check passes again"},
}

// TestWhatIsTriedAgainIsLoggedWhenItBeginsRarelyWhileItLastsAndWhenItEnds looks at the whole log of every service. So it finds a
// loop that is in no list, when the loop logs each of its tries.
func TestWhatIsTriedAgainIsLoggedWhenItBeginsRarelyWhileItLastsAndWhenItEnds(t *testing.T) {
	for _, server := range []string{"Redis", "MySQL"} {
		t.Run(server, func(t *testing.T) {
			redisGate, redisURL := testserver.RedisGate(t, testserver.Redis(t))
			mysqlGate, dsn := testserver.MySQLGate(t, testserver.MySQL(t))
			gate := map[string]*testserver.Gate{"Redis": redisGate, "MySQL": mysqlGate}[server]
			w := start(t, options{redisURL: redisURL, prefix: testserver.Prefix(t), mysqlDSN: dsn})
			watching, stop := context.WithCancel(t.Context())
			defer stop()
			go func() {
				for watching.Err() == nil { // for the loops of the live view
					_ = w.Client().Events(watching, "", func(client.Event) error { return nil })
				}
			}()
			for id := item.ID(1); id <= 20; id++ {
				w.add(id, "bronze", 1000)
			}
			w.mustMove(1, 1500, "silver")
			before := map[*stack.Service]int{}
			for _, s := range w.Services() {
				before[s] = len(w.logLines(s))
			}
			began := time.Now()
			gate.Close()
			w.triedAgain(server)
			for _, loop := range loops {
				if loop.server == server {
					w.waitLogged(loop.service, loop.begins, before)
				}
			}
			minutes := int(time.Since(began) / time.Minute)
			gate.Open()
			for _, loop := range loops {
				if loop.server == server {
					w.waitLogged(loop.service, loop.ends, before)
				}
			}
			for id := item.ID(2); id <= 20; id++ {
				w.wantAccepted(id, 1500)
			}
			w.checkSettled()
			for _, s := range w.Services() {
				seen := map[string]int{}
				for _, l := range w.logLines(s)[before[s]:] {
					if l.Level != "info" || l.fields["cid"] == "" { // not that an item has moved
						seen[l.key()]++
					}
				}
				for key, n := range seen {
					if n > 1+minutes {
						t.Errorf("%s: logged %d times: %s", s.Name, n, key)
					}
				}
			}
		})
	}
}

// triedAgain posts views while a server is away until the checks of every service have found that and have been repeated for a
// while, so that every loop has come round many times.
func (w *world) triedAgain(server string) {
	w.t.Helper()
	check := map[string]string{"Redis": "redis", "MySQL": "mysql"}[server]
	rounds := map[string]int{}
	testserver.Eventually(w.t, "every service misses "+server, patience, func() error {
		_ = w.Post(w.t.Context(), 2, 1500) // accepted where the item is known
		for _, s := range w.Services() {
			resp, err := http.Get("http://" + s.Addr + "/readyz")
			if err != nil {
				return err
			}
			var body struct{ Missing map[string]string }
			err = json.NewDecoder(resp.Body).Decode(&body)
			resp.Body.Close()
			if err != nil || body.Missing[check] == "" {
				return fmt.Errorf("%s: %+v, %w", s.Name, body, err)
			}
			rounds[s.Name]++
		}
		if rounds[w.API.Name] < 200 {
			return fmt.Errorf("only %d rounds", rounds[w.API.Name])
		}
		return nil
	})
}

// waitLogged waits for a message in the log of the first service of a program, after so many lines.
func (w *world) waitLogged(program, message string, after map[*stack.Service]int) {
	w.t.Helper()
	s := map[string]*stack.Service{"api": w.API, "relocator": w.Relocators[0], "committer": w.Committers[0]}[program]
	testserver.Eventually(w.t, fmt.Sprintf("%s logs %q", s.Name, message), patience, func() error {
		for _, l := range w.logLines(s)[after[s]:] {
			if l.Message == message {
				return nil
			}
		}
		return fmt.Errorf("it does not")
	})
}
