package httpapi

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/admin"
)

// Route is a call: everything that is decided about it before its handler runs.
type Route struct {
	Method string
	Path   string // as the router has it: /v1/contents/:cid
	Scope  apikeys.Scope
	Limit  time.Duration // how long the handler may wait for Redis and MySQL; 0: the handler has limits of its own
	Head   bool          // HEAD is answered like GET, without the body
	handle echo.HandlerFunc
}

// timeLimit bounds what a handler waits for Redis and MySQL, unless the handler has limits of its own.
const timeLimit = 10 * time.Second

// table is the one place that says which calls there are. openapi.yaml and docs/formats.md are checked against it.
//
// Health says no more than a load balancer needs. The page of the dashboard has no data in it, and asks for a key. The
// description of the calls and the metrics do need a key.
func (s *Server) table() []Route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	const none, views, read, operate = apikeys.None, apikeys.Views, apikeys.Read, apikeys.Operate
	const head, limit = true, timeLimit
	health := echo.WrapHandler(admin.Handler(s.Ready, s.Metrics))
	return []Route{
		// A limit of its own: a context for each call of the fastest path would be an allocation.
		{post, "/post_sentence", views, 0, false, s.postSentence},
		{post, "/update_sentence", read, limit, false, s.updateSentence},

		{post, "/v1/views", views, 0, false, s.postViews},

		{get, "/v1/contents", read, limit, head, s.listItems},
		{post, "/v1/contents", operate, limit, false, s.createItem},
		{get, "/v1/contents/:cid", read, limit, head, s.showItem},
		{del, "/v1/contents/:cid", operate, limit, false, s.deleteItem},
		{get, "/v1/contents/:cid/location", read, limit, head, s.locateItem},
		{get, "/v1/contents/:cid/file", read, limit, head, s.serveFile},
		{get, "/v1/contents/:cid/file/*", read, limit, head, s.serveFile},
		{get, "/v1/contents/:cid/history", read, limit, head, s.listHistory},
		{put, "/v1/contents/:cid/pin", operate, limit, false, s.putPin},
		{del, "/v1/contents/:cid/pin", operate, limit, false, s.deletePin},

		{get, "/v1/levels", read, limit, head, s.getLevels},
		{put, "/v1/levels", operate, limit, false, s.putLevels},
		{post, "/v1/levels/plan", operate, 0, false, s.planLevels},

		{get, "/v1/status", read, limit, head, s.showStatus},
		{get, "/v1/relocations", read, limit, head, s.listRelocations},
		{get, "/v1/waiting", read, limit, head, s.listWaiting},
		{post, "/v1/pause", operate, limit, false, s.pause},
		{post, "/v1/resume", operate, limit, false, s.resume},
		{get, "/v1/dead", read, limit, head, s.listDead},
		{post, "/v1/dead/:id/retry", operate, limit, false, s.retryDead},
		{del, "/v1/dead/:id", operate, limit, false, s.dropDead},
		// No HEAD: the answer has no end, and its headers say nothing of use.
		{get, "/v1/events", read, 0, false, s.events},

		{get, "/", none, limit, head, s.file("web/index.html", "text/html; charset=utf-8")},
		{get, "/openapi.yaml", read, limit, head, s.file("openapi.yaml", "application/yaml")},
		{get, "/healthz", none, limit, head, health},
		{get, "/readyz", none, limit, head, health},
		{get, "/metrics", read, limit, head, health},
	}
}

// Routes lists every call.
func (s *Server) Routes() []Route { return s.routes }
