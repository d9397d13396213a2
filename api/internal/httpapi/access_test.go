package httpapi_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/httpapi"
)

// described are the scopes that openapi.yaml names, by "METHOD /path" as the router has it; None where it says that no key
// is needed.
func described(t *testing.T) map[string]apikeys.Scope {
	t.Helper()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]apikeys.Scope{}
	path, method := "", ""
	parameter := regexp.MustCompile(`\{(\w+)\}`)
	for line := range strings.Lines(string(text)) {
		if m := regexp.MustCompile(`^  (/\S*):\n`).FindStringSubmatch(line); m != nil {
			path = parameter.ReplaceAllString(strings.Replace(m[1], "/{path}", "/*", 1), ":$1")
		} else if m := regexp.MustCompile(`^    (get|post|put|delete):\n`).FindStringSubmatch(line); m != nil {
			method = strings.ToUpper(m[1])
		} else if m := regexp.MustCompile(`^      security: \[(?:\{key: \[(\w+)\]\})?\]\n`).FindStringSubmatch(line); m != nil {
			found[method+" "+path] = apikeys.None
			if m[1] != "" {
				if found[method+" "+path], err = apikeys.ParseScopes(m[1]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return found
}

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

// ask asks a server that has neither Redis nor MySQL. Whoever is let in to a call that needs them gets a 500.
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

// kind is the last word of a problem's type; "" where the answer is not one of access.
func kind(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Code != http.StatusUnauthorized && w.Code != http.StatusForbidden && w.Code != http.StatusTooManyRequests {
		return ""
	}
	var p httpapi.Problem
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
	scopeOf := described(t)
	for _, r := range s.Routes() {
		method, path := r[0], r[1]
		described := method
		if method == http.MethodHead {
			described = http.MethodGet
		}
		need, ok := scopeOf[described+" "+path]
		if !ok {
			t.Errorf("openapi.yaml does not say which key may call %s %s", method, path)
			continue
		}
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
	scopeOf := described(t)
	for call, want := range map[string]apikeys.Scope{
		"POST /post_sentence": apikeys.Views, "POST /v1/views": apikeys.Views, "POST /update_sentence": apikeys.Read,
		"GET /healthz": apikeys.None, "GET /readyz": apikeys.None, "GET /": apikeys.None, "GET /metrics": apikeys.Read,
	} {
		if got, ok := scopeOf[call]; !ok || got != want {
			t.Errorf("%s needs %q, want %q", call, got, want)
		}
	}
	open := 0
	for call, scope := range scopeOf {
		method, path, _ := strings.Cut(call, " ")
		if scope == apikeys.None {
			open++
		} else if method != http.MethodGet && strings.HasPrefix(path, "/v1/") && path != "/v1/views" && scope != apikeys.Operate {
			t.Errorf("%s changes something, and needs only %s", call, scope)
		}
	}
	if open != 3 {
		t.Errorf("%d calls need no key, want health and the dashboard's page", open)
	}
}

func TestAWrongKeyIsNeverToldWhatIsWrongWithIt(t *testing.T) {
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

func TestManyWrongKeysAreLimitedAndRightOnesAreNot(t *testing.T) {
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

func TestWithoutAGuardEverybodyMayDoEverything(t *testing.T) {
	s := newServer()
	for _, r := range s.Routes() {
		if w := ask(s, r[0], r[1]); kind(t, w) != "" {
			t.Errorf("%s %s: %d %s", r[0], r[1], w.Code, w.Body)
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
