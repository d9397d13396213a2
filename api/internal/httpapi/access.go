package httpapi

import (
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/shared/fault"
)

// guarded wraps a handler so that it runs only for callers that have the scope.
func (s *Server) guarded(scope apikeys.Scope, handle echo.HandlerFunc) echo.HandlerFunc {
	switch {
	case scope == apikeys.None:
		return handle
	case s.Guard == nil && scope == apikeys.Operate:
		return func(c echo.Context) error {
			if err := sameOrigin.Check(c.Request()); err != nil {
				return fault.New(fault.Forbidden, "", "", fmt.Errorf("a page of another site may not do this: %w"+
					" (a proxy in front must pass on the Host header of the request)", err))
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

// sameOrigin refuses what a browser sends for a page of another site. Without keys, every program on this machine may
// operate the service. A page of another site, open in a browser on this machine, must not. Programs send no origin.
var sameOrigin = http.NewCrossOriginProtection()
