package httpapi_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/httpapi"
)

// key makes a key with scopes, and its secret.
func key(t *testing.T, name string, scopes apikeys.Scope) (secret, line string) {
	t.Helper()
	secret, line, err := apikeys.Generate(name, scopes)
	if err != nil {
		t.Fatal(err)
	}
	return secret, line
}

func guard(t *testing.T, lines ...string) *apikeys.Guard {
	t.Helper()
	ks, err := apikeys.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return apikeys.NewGuard(func() []apikeys.Key { return ks })
}

// ask makes a call to a server that has neither Redis nor MySQL. A call that needs them and is let in gets a 500.
func ask(s *httpapi.Server, method, path string, authorization ...string) *httptest.ResponseRecorder {
	path = regexp.MustCompile(`:\w+`).ReplaceAllString(strings.Replace(path, "/*", "/x.ts", 1), "7")
	r := httptest.NewRequest(method, path, nil)
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	w := httptest.NewRecorder()
	s.HTTP().Handler.ServeHTTP(w, r)
	return w
}

// kind is the kind of a problem about access, "" for every other answer.
func kind(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Code != http.StatusUnauthorized && w.Code != http.StatusForbidden && w.Code != http.StatusTooManyRequests {
		return ""
	}
	var p client.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Header().Get("Content-Type") != "application/problem+json" || p.Status != w.Code {
		t.Fatalf("%d %s: not a problem: %v", w.Code, w.Body, err)
	}
	return strings.TrimPrefix(p.Type, "/problems/")
}

func TestEveryCallTakesExactlyTheKeysThatHaveItsScope(t *testing.T) {
	const all = apikeys.Views | apikeys.Read | apikeys.Operate
	secrets := map[apikeys.Scope]string{}
	var lines []string
	for scopes := apikeys.Scope(1); scopes <= all; scopes++ {
		secret, line := key(t, "k"+scopes.String()[:1]+string('0'+rune(scopes)), scopes)
		secrets[scopes], lines = secret, append(lines, line)
	}
	s := guardedServer(guard(t, lines...))
	for _, call := range calls(s) {
		method, path, need := call.method, call.Path, call.Scope
		if need == apikeys.None {
			if w := ask(s, method, path); w.Code != 200 && w.Code != 503 || w.Header().Get("WWW-Authenticate") != "" {
				t.Errorf("%s %s without a key: %d", method, path, w.Code)
			}
			continue
		}
		for what, authorization := range map[string][]string{"no key": nil, "a wrong key": {"Bearer tierflow_wrong"}} {
			w := ask(s, method, path, authorization...)
			if kind(t, w) != "unauthorized" || !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), `Bearer realm="tierflow"`) {
				t.Errorf("%s %s with %s: %d %s", method, path, what, w.Code, w.Body)
			}
		}
		for scopes, secret := range secrets {
			w := ask(s, method, path, "Bearer "+secret)
			if scopes&need != 0 {
				if k := kind(t, w); k != "" {
					t.Errorf("%s %s with the scopes %s: %s", method, path, scopes, w.Body)
				}
				continue
			}
			if kind(t, w) != "forbidden" || !strings.Contains(w.Body.String(), "lacks "+need.String()) ||
				!strings.Contains(w.Header().Get("WWW-Authenticate"), `error="insufficient_scope", scope="`+need.String()+`"`) {
				t.Errorf("%s %s with the scopes %s: %d %s", method, path, scopes, w.Code, w.Body)
			}
		}
	}
}

func TestTheScopesAreThoseOfTheContract(t *testing.T) {
	want := map[string]apikeys.Scope{
		"POST /post_sentence": apikeys.Views, "POST /v1/views": apikeys.Views, "POST /update_sentence": apikeys.Read,
		"GET /healthz": apikeys.None, "GET /readyz": apikeys.None, "GET /": apikeys.None, "GET /metrics": apikeys.Read,
	}
	open := 0
	for _, r := range newServer().Routes() {
		if scope, ok := want[r.Method+" "+r.Path]; ok && scope != r.Scope {
			t.Errorf("%s %s needs %q, want %q", r.Method, r.Path, r.Scope, scope)
		}
		delete(want, r.Method+" "+r.Path)
		if r.Scope == apikeys.None {
			open++
		} else if r.Method != http.MethodGet && strings.HasPrefix(r.Path, "/v1/") && r.Path != "/v1/views" && r.Scope != apikeys.Operate {
			t.Errorf("%s %s changes something, and needs only %s", r.Method, r.Path, r.Scope)
		}
	}
	if open != 3 || len(want) > 0 {
		t.Errorf("%d calls need no key, want health and the page of the dashboard; missing: %v", open, want)
	}
}

func TestEveryWrongKeyGetsTheSameAnswer(t *testing.T) {
	secret, line := key(t, "reader", apikeys.Read)
	s := guardedServer(guard(t, line))
	var body string
	for _, a := range [][]string{
		{"Bearer " + secret + "x"}, {"Bearer " + secret[:len(secret)-1]}, {"Bearer " + strings.ToUpper(secret)}, {"Bearer "}, {"Bearer"}, {""},
		{"Basic " + secret}, {secret}, {"Bearer " + strings.Repeat("a", 4096)}, {"Bearer " + secret, "Bearer " + secret},
		{"Bearer " + strings.Fields(line)[2]}, {"Bearer \x00" + secret},
	} {
		w := ask(s, "GET", "/openapi.yaml", a...)
		if kind(t, w) != "unauthorized" {
			t.Fatalf("%q: %d %s", a, w.Code, w.Body)
		}
		if body == "" {
			body = w.Body.String()
		} else if w.Body.String() != body {
			t.Errorf("%q is answered %s, another %s", a, w.Body, body)
		}
	}
	for _, a := range []string{"Bearer " + secret, "bearer " + secret, "BEARER  " + secret + " "} {
		if w := ask(s, "GET", "/openapi.yaml", a); w.Code != 200 {
			t.Errorf("%q: %d %s", a, w.Code, w.Body)
		}
	}
}

func TestManyWrongKeysAreLimitedAndRightKeysAreNot(t *testing.T) {
	secret, line := key(t, "reader", apikeys.Read)
	s := guardedServer(guard(t, line))
	limited := false
	for range 1000 {
		w := ask(s, "GET", "/openapi.yaml", "Bearer wrong")
		if k := kind(t, w); k == "rate-limited" {
			limited = true
			if w.Header().Get("Retry-After") == "" {
				t.Fatal("no Retry-After")
			}
			break
		} else if k != "unauthorized" {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if !limited {
		t.Fatal("a thousand wrong keys in a row were not limited")
	}
	if w := ask(s, "GET", "/openapi.yaml", "Bearer "+secret); w.Code != 200 {
		t.Fatalf("the right key from the same address: %d %s", w.Code, w.Body)
	}
	if w := ask(s, "GET", "/openapi.yaml"); kind(t, w) != "unauthorized" {
		t.Fatalf("no key from the same address: %d %s", w.Code, w.Body)
	}
}

func TestWithoutAGuardEveryCallerMayDoEverything(t *testing.T) {
	s := newServer()
	for _, call := range calls(s) {
		if w := ask(s, call.method, call.Path); kind(t, w) != "" {
			t.Errorf("%s %s: %d %s", call.method, call.Path, w.Code, w.Body)
		}
	}
}

func TestWithoutAGuardNoPageOfAnotherSiteMayOperateTheService(t *testing.T) {
	s := newServer()
	from := func(method, path string, header ...string) int {
		r := httptest.NewRequest(method, "http://127.0.0.1:5000"+path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		s.HTTP().Handler.ServeHTTP(w, r)
		return w.Code
	}
	for _, c := range []struct {
		what   string
		header []string
		may    bool
	}{
		{"a program", nil, true},
		{"the dashboard", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:5000"}, true},
		{"the dashboard in an old browser", []string{"Origin", "http://127.0.0.1:5000"}, true},
		{"a page of another site", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, false},
		{"a page of another site in an old browser", []string{"Origin", "https://evil.example"}, false},
	} {
		if code := from("POST", "/v1/pause", c.header...); (code != http.StatusForbidden) != c.may {
			t.Errorf("%s: %d", c.what, code)
		}
		if code := from("POST", "/post_sentence", c.header...); code == http.StatusForbidden { // counts may come from players
			t.Errorf("%s may not post a count", c.what)
		}
	}
}
