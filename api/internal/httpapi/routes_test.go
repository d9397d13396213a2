package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/httpapi"
	"github.com/tierflow/tierflow/shared/admin"
)

func newServer() *httpapi.Server { return guardedServer(nil) }

func guardedServer(g *apikeys.Guard) *httpapi.Server {
	log := zap.NewNop()
	return httpapi.New(httpapi.Options{Log: log, Ready: admin.NewReady(log), Metrics: admin.NewRegistry(), Guard: g})
}

func TestTheDescriptionHasEveryCallAndNoOther(t *testing.T) {
	s := newServer()
	var routes []string
	parameter := regexp.MustCompile(`:(\w+)`)
	for _, r := range s.Routes() {
		if r[0] == http.MethodHead {
			continue
		}
		path := strings.Replace(parameter.ReplaceAllString(r[1], "{$1}"), "/*", "/{path}", 1)
		routes = append(routes, r[0]+" "+path)
	}
	w := httptest.NewRecorder()
	s.HTTP().Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.yaml", nil))
	var described []string
	path := ""
	for line := range strings.Lines(w.Body.String()) {
		if m := regexp.MustCompile(`^  (/\S*):\n`).FindStringSubmatch(line); m != nil {
			path = m[1]
		} else if m := regexp.MustCompile(`^    (get|post|put|delete):\n`).FindStringSubmatch(line); m != nil {
			described = append(described, strings.ToUpper(m[1])+" "+path)
		} else if strings.HasPrefix(line, "components:") {
			break
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if !slices.Equal(routes, described) {
		t.Fatalf("routes:\n%s\n\ndescribed:\n%s", strings.Join(routes, "\n"), strings.Join(described, "\n"))
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
