package httpapi

import (
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/fault"
)

// scopes says what a key must have for each call. Health tells no more than a load balancer needs, and the dashboard is
// a page without data, which asks for a key. The description and the metrics are not health: they need a key that reads.
var scopes = map[string]apikeys.Scope{
	"POST /post_sentence": apikeys.Views,
	"POST /v1/views":      apikeys.Views,

	"POST /update_sentence":          apikeys.Read,
	"GET /v1/contents":               apikeys.Read,
	"GET /v1/contents/:cid":          apikeys.Read,
	"GET /v1/contents/:cid/location": apikeys.Read,
	"GET /v1/contents/:cid/file":     apikeys.Read,
	"GET /v1/contents/:cid/file/*":   apikeys.Read,
	"GET /v1/contents/:cid/history":  apikeys.Read,
	"GET /v1/levels":                 apikeys.Read,
	"GET /v1/relocations":            apikeys.Read,
	"GET /v1/dead":                   apikeys.Read,
	"GET /v1/events":                 apikeys.Read,
	"GET /openapi.yaml":              apikeys.Read,
	"GET /metrics":                   apikeys.Read,

	"POST /v1/contents":            apikeys.Operate,
	"DELETE /v1/contents/:cid":     apikeys.Operate,
	"PUT /v1/contents/:cid/pin":    apikeys.Operate,
	"DELETE /v1/contents/:cid/pin": apikeys.Operate,
	"PUT /v1/levels":               apikeys.Operate,
	"POST /v1/pause":               apikeys.Operate,
	"POST /v1/resume":              apikeys.Operate,
	"POST /v1/dead/:id/retry":      apikeys.Operate,
	"DELETE /v1/dead/:id":          apikeys.Operate,

	"GET /":        apikeys.None,
	"GET /healthz": apikeys.None,
	"GET /readyz":  apikeys.None,
}

func scopeOf(method, path string) apikeys.Scope {
	scope, decided := scopes[method+" "+path]
	if !decided {
		panic(fmt.Sprintf("it is not decided which key may call %s %s", method, path)) // no test gets past this
	}
	return scope
}

// guarded lets only those in who may call a handler.
func (s *Server) guarded(scope apikeys.Scope, handle echo.HandlerFunc) echo.HandlerFunc {
	switch {
	case scope == apikeys.None:
		return handle
	case s.Guard == nil && scope == apikeys.Operate:
		return func(c echo.Context) error {
			if err := sameOrigin.Check(c.Request()); err != nil {
				return fault.New(fault.Forbidden, "", "", fmt.Errorf("a page of another site may not do this: %w"+
					" (a proxy in front must pass on the Host that it was asked for)", err))
			}
			return handle(c)
		}
	case s.Guard == nil:
		return handle
	}
	return func(c echo.Context) error {
		if err := s.Guard.Allow(c.Request(), c.Response().Header(), scope); err != nil {
			return err
		}
		return handle(c)
	}
}

// sameOrigin refuses what a browser sends for a page of another site. Without keys, everybody on this machine may operate
// the service, and a page that somebody looks at here is no one. Programs say nothing of a site.
var sameOrigin = http.NewCrossOriginProtection()
