package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/tierflow/tierflow/shared/fault"
)

// Problem is the body of every error (RFC 9457), and the error that a Client returns for it.
type Problem struct {
	Type   string `json:"type"` // /problems/ and a kind, or about:blank
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	*Batch        // what became of a batch that broke off; nil for any other call
}

// typePrefix begins the type of every problem that has a kind.
const typePrefix = "/problems/"

// ProblemType is the type of the problems of a kind.
func ProblemType(kind fault.Kind) string { return typePrefix + string(kind) }

// Kind is the kind in the problem's type, fault.Internal where the type has none.
func (p *Problem) Kind() fault.Kind { return kindOf(p.Type) }

// Kind is the kind in the refusal's type, fault.Internal where the type has none.
func (r Refusal) Kind() fault.Kind { return kindOf(r.Type) }

func kindOf(problemType string) fault.Kind {
	if kind, ok := strings.CutPrefix(problemType, typePrefix); ok {
		return fault.Kind(kind)
	}
	return fault.Internal
}

// Error is the detail with status and kind, such as "no item has the cid 7 (404 unknown-content)".
func (p *Problem) Error() string {
	return fmt.Sprintf("%s (%d %s)", p.Detail, p.Status, strings.TrimPrefix(p.Type, typePrefix))
}

// problemOf makes the error of an answer whose status is not 2xx. What answers may be something else than the api, such
// as a proxy: then the problem has the type about:blank.
func problemOf(resp *http.Response, body []byte) *Problem {
	var p Problem
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		p = Problem{Type: "about:blank", Title: resp.Status,
			Detail: fmt.Sprintf("%s %s: %s: is this Tierflow's api?", resp.Request.Method, resp.Request.URL.Redacted(), resp.Status)}
	}
	p.Status = resp.StatusCode
	return &p
}
