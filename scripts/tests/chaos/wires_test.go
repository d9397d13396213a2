package chaos_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// surgeon loses each kind of request of each service once, and the reply to it once.
type surgeon struct {
	mu    sync.Mutex
	done  map[string]bool
	left  map[string]int // cuts that are left for a service in this round
	round []string
}

// judge returns what a gate does with each request of one service.
func (s *surgeon) judge(service string, kind func(request []byte) string) func([]byte) testserver.Fate {
	return func(request []byte) testserver.Fate {
		s.mu.Lock()
		defer s.mu.Unlock()
		name := kind(request)
		if name == "" || s.left[service] == 0 {
			return testserver.Pass
		}
		for fate, what := range map[testserver.Fate]string{testserver.LoseRequest: "request", testserver.LoseReply: "reply"} {
			cut := fmt.Sprintf("%s: %s: %s", strings.TrimRight(service, "-0123456789"), name, what)
			if !s.done[cut] {
				s.done[cut] = true
				s.left[service]--
				s.round = append(s.round, cut)
				return fate
			}
		}
		return testserver.Pass
	}
}

var digits = regexp.MustCompile(`\d+`)

// redisKind names the commands of a request, by their scripts and keys: "xreadgroup tierflow:views".
func redisKind(request []byte) string {
	var kinds []string
	for len(request) > 0 && request[0] == '*' {
		var words []string
		words, request = command(request)
		if len(words) == 0 {
			break
		}
		name := strings.ToLower(words[0])
		switch {
		case (name == "evalsha" || name == "eval") && len(words) > 2:
			n, _ := strconv.Atoi(words[2])
			keys := words[3:min(3+n, len(words))]
			name = "script " + scriptName(words[1]) + " " + plain(keys[:min(5, len(keys))])
		case name == "script" && len(words) > 2:
			name += " load " + scriptName(words[2])
		case name == "xreadgroup" || name == "xread":
			name += " " + plain(words[slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, "streams") })+1:][:1])
		case len(words) > 1:
			name += " " + plain(words[1:min(3, len(words))])
		}
		if !slices.Contains(kinds, name) {
			kinds = append(kinds, name)
		}
	}
	return strings.Join(kinds, ", ")
}

// plain removes from the words what differs from one item to the next.
func plain(words []string) string {
	return strings.ReplaceAll(digits.ReplaceAllString(strings.Join(words, " "), "N"), "tierflow:", "")
}

// scriptName returns the beginning of a script's name in Redis. It takes the whole name or the script's text.
func scriptName(script string) string {
	if len(script) != 2*sha1.Size {
		sum := sha1.Sum([]byte(script))
		script = hex.EncodeToString(sum[:])
	}
	return script[:6]
}

// command reads one command of Redis' protocol, as far as it has arrived.
func command(b []byte) (words []string, rest []byte) {
	line := func(prefix byte) (n int, ok bool) {
		text, after, found := bytes.Cut(b, []byte("\r\n"))
		if !found || len(text) == 0 || text[0] != prefix {
			return 0, false
		}
		b = after
		n, err := strconv.Atoi(string(text[1:]))
		return n, err == nil
	}
	n, ok := line('*')
	for range n {
		size, isWord := line('$')
		if !ok || !isWord || len(b) < size+2 {
			return words, nil
		}
		words, b = append(words, string(b[:size])), b[size+2:]
	}
	return words, b
}

var literal = regexp.MustCompile(`'[^']*'|\d+`)

// mysqlKind names the statement of a request by its first words.
func mysqlKind(request []byte) string {
	switch {
	case len(request) < 5 || request[4] == 0x01: // quit
		return ""
	case request[3] == 1: // the answer to the server's greeting
		return "login"
	case request[4] != 0x03: // not a query
		return fmt.Sprintf("command %#x", request[4])
	}
	text := literal.ReplaceAllString(string(request[5:min(200, len(request))]), "N")
	return strings.TrimSpace(text[:min(52, len(text))])
}

func TestEveryKindOfRequestMayGetLostOnItsWayThereOrBack(t *testing.T) {
	t.Parallel()
	w := start(t, oneRedis, library())
	s := &surgeon{done: map[string]bool{}, left: map[string]int{}}
	for name, g := range w.gates {
		g.Judge(s.judge(name, mysqlKind))
	}
	for name, g := range w.redis.(*single).byName {
		g.Judge(s.judge(name, redisKind))
	}
	next := item.ID(100)
	for quiet, n := 0, 1; quiet < 2; n++ {
		if n > 100 {
			t.Fatal("there are new kinds of requests all the time")
		}
		s.mu.Lock()
		for name := range w.gates {
			s.left[name] = 2
		}
		s.round = nil
		s.mu.Unlock()
		next = w.oneOfEach(next)
		w.look()
		s.mu.Lock()
		cuts := s.round
		s.mu.Unlock()
		for _, c := range cuts {
			w.note("round %d lost %s", n, c)
		}
		if quiet++; len(cuts) > 0 {
			quiet = 0
		}
		if t.Failed() {
			return
		}
	}
	all := slices.Sorted(maps.Keys(s.done))
	t.Logf("%d requests and replies were lost:\n%s", len(all), strings.Join(all, "\n"))
	for _, must := range []string{ // the steps of the protocol that every run must have reached
		"api: script .* views content:N.*reply",                                   // append
		"relocator: xreadgroup views: reply",                                      // read
		"relocator: script .* content:N lock:N views: reply",                      // take, settle
		"relocator: script .* content:N lock:N views relocated progress:N: reply", // emit
		"relocator: script .* lock:N: reply",                                      // lock, renew
		"relocator: script .* lock:N progress:N committed: reply",                 // released
		"relocator: SELECT .*: reply",                                             // look up
		"relocator: UPDATE contents SET generation = generation .*: reply",        // begin a release
		"committer: xreadgroup relocated: reply",
		"committer: SELECT cid, content_level, filename, generation.*: reply",
		"committer: UPDATE contents SET .*: reply",
		"committer: INSERT INTO update_history .*: reply",
		"committer: COMMIT: reply",
		"committer: script .* content:N lock:N relocated committed views: reply", // finish
		"committer: xautoclaim relocated .*: reply",
	} {
		if !slices.ContainsFunc(all, regexp.MustCompile(must).MatchString) {
			t.Errorf("no request or reply was lost that matches %s", must)
		}
	}
}

// oneOfEach adds items and posts counts that make every step happen.
func (w *world) oneOfEach(id item.ID) (next item.ID) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for _, one := range []struct {
		level  string
		size   int64
		counts []item.Count
	}{
		{"bronze", 6 << 20, []item.Count{2500}},        // a copy that takes longer than a third of a lease
		{"bronze", 1000, []item.Count{1500}},           // a link
		{"gold", 1000, []item.Count{5}},                // a copy
		{"bronze", 1000, []item.Count{1500, 2500, 10}}, // the last one wins
		{"silver", 1000, []item.Count{1200}},           // no move
	} {
		s := stack.Sample{ID: id, Filename: fmt.Sprintf("more/%s", id), Level: one.level, Size: one.size}
		w.must("add", w.Add(ctx, s))
		for _, count := range one.counts {
			w.must("post", eventually(ctx, func() error { return w.post(ctx, id, count) }))
		}
		id++
	}
	return id
}
