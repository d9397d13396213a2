package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/httpapi"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/fault"
)

func newServer() *httpapi.Server { return guardedServer(nil) }

func guardedServer(g *apikeys.Guard) *httpapi.Server {
	log := zap.NewNop()
	return httpapi.New(httpapi.Options{Log: log, Ready: admin.NewReady(log), Metrics: admin.NewRegistry(), Guard: g})
}

// call is a route under one of the methods that it answers.
type call struct {
	method string
	httpapi.Route
}

// calls are all routes, those that answer HEAD a second time with it.
func calls(s *httpapi.Server) (all []call) {
	for _, r := range s.Routes() {
		all = append(all, call{r.Method, r})
		if r.Head {
			all = append(all, call{http.MethodHead, r})
		}
	}
	return all
}

// described is a call as openapi.yaml describes it.
type described struct {
	scope string // "" where no key is needed
	limit string // of x-time-limit; "" for the usual one
	text  string // all lines of the call
}

// description reads openapi.yaml: its calls by method and path as the router has it, and its head with the usual limit.
func description(t *testing.T) (head string, calls map[string]described) {
	t.Helper()
	text := readFile(t, "openapi.yaml")
	head, paths, _ := strings.Cut(text, "\npaths:\n")
	paths, _, _ = strings.Cut(paths, "\ncomponents:\n")
	var (
		parameter = regexp.MustCompile(`\{(\w+)\}`)
		aPath     = regexp.MustCompile(`^  (/\S*):\n`)
		aMethod   = regexp.MustCompile(`^    (get|post|put|delete|head):\n`)
		aScope    = regexp.MustCompile(`^      security: \[(?:\{key: \[(\w+)\]\})?\]\n`)
		aLimit    = regexp.MustCompile(`^      x-time-limit: (\S+)\n`)
	)
	calls = map[string]described{}
	path, name := "", ""
	for line := range strings.Lines(paths) {
		if m := aPath.FindStringSubmatch(line); m != nil {
			path, name = parameter.ReplaceAllString(strings.Replace(m[1], "/{path}", "/*", 1), ":$1"), ""
		} else if m := aMethod.FindStringSubmatch(line); m != nil {
			name = strings.ToUpper(m[1]) + " " + path
			calls[name] = described{scope: "not described"}
		}
		if name == "" {
			continue
		}
		d := calls[name]
		d.text += line
		if m := aScope.FindStringSubmatch(line); m != nil {
			d.scope = m[1]
		} else if m := aLimit.FindStringSubmatch(line); m != nil {
			d.limit = m[1]
		}
		calls[name] = d
	}
	return head, calls
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheDescriptionHasEveryCallAndNoOther(t *testing.T) {
	_, described := description(t)
	for _, r := range newServer().Routes() {
		name := r.Method + " " + r.Path
		if _, ok := described[name]; !ok {
			t.Errorf("openapi.yaml does not describe %s", name)
		}
		delete(described, name)
	}
	for name := range described {
		t.Errorf("openapi.yaml describes %s, which the route table lacks", name)
	}
}

func TestTheDescriptionHasTheScopeTheLimitAndTheHeadOfEveryCall(t *testing.T) {
	head, described := description(t)
	usual := regexp.MustCompile(`a time limit of (\d+) seconds`).FindStringSubmatch(head)
	if usual == nil {
		t.Fatal("openapi.yaml does not name the usual time limit")
	}
	for _, r := range newServer().Routes() {
		d := described[r.Method+" "+r.Path]
		if d.scope != r.Scope.String() {
			t.Errorf("%s %s needs the scope %q, and is described with %q", r.Method, r.Path, r.Scope, d.scope)
		}
		want := d.limit
		if want == "" {
			want = usual[1] + "s"
		}
		got := "own"
		if r.Limit > 0 {
			got = r.Limit.String()
		}
		if got != want {
			t.Errorf("%s %s has the time limit %s, and is described with %s", r.Method, r.Path, got, want)
		}
		if noHead := strings.Contains(d.text, "HEAD is not answered"); noHead != (r.Method == http.MethodGet && !r.Head) {
			t.Errorf("%s %s answers HEAD: %t; described as not answered: %t", r.Method, r.Path, r.Head, noHead)
		}
	}
}

// tableOf is the rows of the table of docs/formats.md whose first line has these headings, as their cells.
func tableOf(t *testing.T, headings string) (rows [][]string) {
	t.Helper()
	_, text, ok := strings.Cut(readFile(t, "../../../docs/formats.md"), "\n"+headings+"\n")
	if !ok {
		t.Fatalf("docs/formats.md has no table %s", headings)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if !strings.HasPrefix(line, "|---") {
			rows = append(rows, strings.Split(strings.Trim(line, "|\n"), "|"))
		}
	}
	return rows
}

var (
	inCode    = regexp.MustCompile("`([^`]+)`")
	colonName = regexp.MustCompile(`:(\w+)`)
)

func TestTheTableOfCallsInTheFormatsNamesEveryCallUnderV1(t *testing.T) {
	named := map[string]bool{}
	for _, row := range tableOf(t, "| call | answers |") {
		for _, m := range inCode.FindAllStringSubmatch(row[0], -1) {
			named[m[1]] = true
		}
	}
	for _, r := range newServer().Routes() {
		name := r.Method + " " + colonName.ReplaceAllString(r.Path, "{$1}")
		switch {
		case named[name]:
			delete(named, name)
		case named[r.Path]:
			delete(named, r.Path)
		case strings.HasPrefix(r.Path, "/v1/") && r.Path != "/v1/contents/:cid/file/*":
			t.Errorf("docs/formats.md does not name %s", name)
		}
	}
	for name := range named {
		t.Errorf("docs/formats.md names %s, which the route table lacks", name)
	}
}

// covers reports whether a cell of the table of scopes names a route.
func covers(cell string, r httpapi.Route) bool {
	name := r.Method + " " + colonName.ReplaceAllString(r.Path, "{$1}")
	for _, m := range inCode.FindAllStringSubmatch(cell, -1) {
		if m[1] == name || m[1] == r.Path {
			return true
		}
	}
	return strings.Contains(cell, "every `GET` under `/v1`") && r.Method == http.MethodGet && strings.HasPrefix(r.Path, "/v1/")
}

func TestTheTableOfScopesInTheFormatsIsThatOfTheRoutes(t *testing.T) {
	rows := tableOf(t, "| scope | calls |")
	for _, r := range newServer().Routes() {
		got, rest := "", ""
		for _, row := range rows {
			scope := strings.Trim(row[0], " `")
			if strings.Contains(row[1], "everything else under `/v1`") {
				rest = scope
			} else if covers(row[1], r) {
				got = scope
			}
		}
		if got == "" && strings.HasPrefix(r.Path, "/v1/") {
			got = rest
		}
		want := r.Scope.String()
		if r.Scope == apikeys.None {
			want = "none"
		}
		if got != want {
			t.Errorf("%s %s needs the scope %s; docs/formats.md says %q", r.Method, r.Path, want, got)
		}
	}
}

// The kinds that a problem can have are declared in fault and answered here. Both documents must list them.
func TestTheDocumentsListEveryProblemType(t *testing.T) {
	var kinds []string
	for kind := range httpapi.ProblemKinds() {
		kinds = append(kinds, string(kind))
	}
	slices.Sort(kinds)
	_, list, _ := strings.Cut(readFile(t, "../../../docs/formats.md"), "with the type `/problems/` and one of ")
	list, _, _ = strings.Cut(list, ". ")
	var inFormats []string
	for _, m := range inCode.FindAllStringSubmatch(list, -1) {
		inFormats = append(inFormats, m[1])
	}
	slices.Sort(inFormats)
	if !slices.Equal(kinds, inFormats) {
		t.Errorf("docs/formats.md lists %q, the api answers %q", inFormats, kinds)
	}
	var inOpenAPI []string
	_, schema, _ := strings.Cut(readFile(t, "openapi.yaml"), "\n    Problem:\n      type: object")
	for _, m := range regexp.MustCompile(`/problems/([a-z-]+)`).FindAllStringSubmatch(schema, -1) {
		inOpenAPI = append(inOpenAPI, m[1])
	}
	slices.Sort(inOpenAPI)
	if !slices.Equal(kinds, inOpenAPI) {
		t.Errorf("openapi.yaml lists %q, the api answers %q", inOpenAPI, kinds)
	}
}

func TestAnUnknownPathIsNotFound(t *testing.T) {
	w := ask(newServer(), http.MethodGet, "/v1/nowhere")
	if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), client.ProblemType(fault.NotFound)) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Its handler runs until the caller goes. For HEAD it would run on while the caller, who has the headers, sends its next
// request on the same connection.
func TestHeadOfTheEventsIsAnsweredAtOnceAndLeavesTheConnectionUsable(t *testing.T) {
	srv := httptest.NewServer(newServer().HTTP().Handler)
	defer srv.Close()
	c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	status := func(method, path string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		return fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Allow"))
	}
	if got := status(http.MethodHead, "/v1/events"); got != "405 OPTIONS, GET" {
		t.Errorf("HEAD /v1/events: %s", got)
	}
	if got := status(http.MethodGet, "/healthz"); got != "200 " {
		t.Errorf("GET /healthz on the same connection: %s", got)
	}
}

func TestEveryOtherGetAnswersHead(t *testing.T) {
	s := newServer()
	for _, r := range s.Routes() {
		if r.Method != http.MethodGet || r.Path == "/v1/events" {
			continue
		}
		if w := ask(s, http.MethodHead, r.Path); w.Code == http.StatusMethodNotAllowed {
			t.Errorf("HEAD %s: %d", r.Path, w.Code)
		}
	}
}

// A list that is cut without a word is taken for the whole.
func TestTheDashboardSaysThatThereAreMoreAndWhatNoRelocatorReaches(t *testing.T) {
	page := readFile(t, "web/index.html")
	for _, want := range []string{`note("unreachable", unreachable`, `note("moreMoves", next_after`, `note("moreDead", next_after`,
		`id="unreachable"`, `id="moreMoves"`, `id="moreDead"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// A page that is green while nothing works is worse than none.
func TestTheDashboardIsGreenOnlyWhereNothingWaits(t *testing.T) {
	page := readFile(t, "web/index.html")
	for _, want := range []string{`await ask("/v1/status")`, "[showStatus(), ", "showTiers(tiers, rates)", `$("tiers").className = "old"`, `"no contact with the api"`, `", as of "`, "AbortSignal.timeout("} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(page, "/readyz") {
		t.Error("the page takes the readiness of one api for the state of everything")
	}
}

func TestAPanicIsA500AndTheNextRequestIsServed(t *testing.T) {
	h := newServer().HTTP().Handler // it has no MySQL: the handler runs into nil
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/levels", nil))
	if w.Code != 500 || w.Header().Get("Content-Type") != "application/problem+json" || !strings.Contains(w.Body.String(), `"about:blank"`) {
		t.Fatalf("%d %s %s", w.Code, w.Header(), w.Body)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != 200 {
		t.Fatal(w.Code)
	}
}
