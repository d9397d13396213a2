package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// Media types of bodies.
const (
	formType   = "application/x-www-form-urlencoded"
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

// mediaType is the media type of the body without parameters. It must be one of allowed.
func mediaType(r *http.Request, allowed ...string) (string, error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", fault.New(fault.UnsupportedMedia, "", "", fmt.Errorf(format, args...))
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refuse("the body must not be compressed, and this one is %q", e)
	}
	given := r.Header.Get("Content-Type")
	got, _, _ := strings.Cut(given, ";")
	got = strings.TrimSpace(got)
	for _, a := range allowed {
		if strings.EqualFold(got, a) {
			return a, nil
		}
	}
	return refuse("Content-Type must be %s, not %q", strings.Join(allowed, " or "), given)
}

// readBody appends the body to b. A body of more than maxBody bytes is an error.
func readBody(r *http.Request, b []byte) ([]byte, error) {
	if r.ContentLength > maxBody {
		return b, errTooLarge
	}
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if len(b) > maxBody {
			return b, errTooLarge
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, readError(err)
		}
	}
}

var errTooLarge error = fault.New(fault.TooLarge, "", "", fmt.Errorf("the body has more than %d bytes", maxBody))

func readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return malformed("the body did not arrive in time")
	}
	return malformed("the body did not arrive as announced: %v", err)
}

// field is a parameter that a body must have exactly once.
type field struct {
	name  string
	value []byte // as text, a JSON string without its quotes; part of the body, or a copy
	seen  bool
}

func set(fields []field, name, value []byte) error {
	for i := range fields {
		if f := &fields[i]; f.name == string(name) {
			if f.seen {
				return malformed("%s is given twice", f.name)
			}
			f.value, f.seen = value, true
		}
	}
	return nil
}

func complete(fields []field) error {
	for _, f := range fields {
		if !f.seen {
			return malformed("%s is missing", f.name)
		}
	}
	return nil
}

// parseBody reads fields from a body of a media type.
func parseBody(mediaType string, b []byte, fields []field) error {
	if mediaType == formType {
		return parseForm(b, fields)
	}
	return parseObject(b, fields)
}

// parseForm reads fields from a form and ignores all others. It allocates only for escapes. Plain numbers have none.
func parseForm(b []byte, fields []field) error {
	for len(b) > 0 {
		pair := b
		if i := bytes.IndexByte(b, '&'); i >= 0 {
			pair, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if len(pair) == 0 {
			continue
		}
		name, value, _ := bytes.Cut(pair, []byte("="))
		name, err := unescape(name)
		if err != nil {
			return err
		}
		if value, err = unescape(value); err != nil {
			return err
		}
		if err := set(fields, name, value); err != nil {
			return err
		}
	}
	return complete(fields)
}

func unescape(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '%') < 0 && bytes.IndexByte(b, '+') < 0 {
		return b, nil
	}
	s, err := url.QueryUnescape(string(b))
	if err != nil {
		return nil, malformed("the form is not percent-encoded as it should be: %v", err)
	}
	return []byte(s), nil
}

// parseObject reads fields from a JSON object and ignores all others. A number keeps its text.
func parseObject(b []byte, fields []field) error {
	err := eachMember(b, func(name, value []byte) error {
		if value[0] == '"' {
			text, err := unquote(value)
			if err != nil {
				return err
			}
			value = text
		}
		return set(fields, name, value)
	})
	if err != nil {
		return err
	}
	return complete(fields)
}

// eachMember calls fn with every name and value of the JSON object that b consists of. encoding/json checks that b is valid.
// Finding the members of valid JSON is easy and allocates nothing, and shows names that occur twice.
func eachMember(b []byte, fn func(name, value []byte) error) error {
	if !json.Valid(b) {
		var any json.RawMessage
		return malformed("this is not JSON: %v", json.Unmarshal(b, &any))
	}
	b = bytes.TrimLeft(b, jsonSpace)
	if b[0] != '{' {
		return malformed("this is not a JSON object")
	}
	b = bytes.TrimLeft(b[1:], jsonSpace)
	for b[0] != '}' {
		n := valueLen(b)
		name, err := unquote(b[:n])
		if err != nil {
			return err
		}
		b = bytes.TrimLeft(b[n:], jsonSpace)
		b = bytes.TrimLeft(b[1:], jsonSpace) // the colon
		n = valueLen(b)
		if err := fn(name, b[:n]); err != nil {
			return err
		}
		b = bytes.TrimLeft(b[n:], jsonSpace)
		if b[0] == ',' {
			b = bytes.TrimLeft(b[1:], jsonSpace)
		}
	}
	return nil
}

const jsonSpace = " \t\r\n"

// valueLen is the length of the value at the beginning of valid JSON.
func valueLen(b []byte) int {
	switch b[0] {
	case '"':
		for i := 1; ; i++ {
			if b[i] == '\\' {
				i++
			} else if b[i] == '"' {
				return i + 1
			}
		}
	case '{', '[':
		depth := 0
		for i := 0; ; i++ {
			switch b[i] {
			case '"':
				i += valueLen(b[i:]) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	if i := bytes.IndexAny(b, ",]}"+jsonSpace); i >= 0 {
		return i
	}
	return len(b)
}

// unquote is the text of a JSON string.
func unquote(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '\\') < 0 {
		return b[1 : len(b)-1], nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, malformed("this is not JSON: %v", err)
	}
	return []byte(s), nil
}

func parseID(f field) (item.ID, error) {
	id, err := item.ParseID(string(f.value))
	if err != nil {
		return 0, malformed("%s %v", f.name, err)
	}
	return id, nil
}

func parseCount(f field) (item.Count, error) {
	n, err := item.ParseCount(string(f.value))
	if err != nil {
		return 0, malformed("%s %v", f.name, err)
	}
	return n, nil
}

// decode reads a JSON body into v, a pointer to a struct, as decodeObject does.
func decode(r *http.Request, v any, required ...string) error {
	if _, err := mediaType(r, jsonType); err != nil {
		return err
	}
	b, err := readBody(r, nil)
	if err != nil {
		return err
	}
	if !utf8.Valid(b) { // the decoder would replace the invalid bytes
		return malformed("the body is not UTF-8")
	}
	return decodeObject(b, v, required...)
}

// decodeObject reads a JSON object into v, a pointer to a struct. The object must have the required members, and they must
// not be null. A member that occurs twice or that v does not know is an error: a slip of the pen must not pass for a default.
func decodeObject(b []byte, v any, required ...string) error {
	seen := map[string]bool{} // by name: whether the value is not null
	err := eachMember(b, func(name, value []byte) error {
		if _, twice := seen[string(name)]; twice {
			return malformed("%s is given twice", name)
		}
		seen[string(name)] = string(value) != "null"
		return nil
	})
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return malformed("%s must not be a %s", kind.Field, kind.Value)
		}
		return malformed("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	for _, name := range required {
		if !seen[name] {
			return malformed("%s is missing", name)
		}
	}
	return nil
}

// query reads the query of a call. It may have only the allowed parameters, each once.
func query(c echo.Context, allowed ...string) (url.Values, error) {
	q, err := url.ParseQuery(c.Request().URL.RawQuery)
	if err != nil {
		return nil, malformed("the query cannot be read: %v", err)
	}
	for name, values := range q {
		known := false
		for _, a := range allowed {
			known = known || a == name
		}
		switch {
		case !known && len(allowed) == 0:
			return nil, malformed("there is no parameter %q: this call has no query", name)
		case !known:
			return nil, malformed("there is no parameter %q: this call takes %s in the query", name, strings.Join(allowed, ", "))
		case len(values) > 1:
			return nil, malformed("%s is given twice", name)
		}
	}
	return q, nil
}

// Limits of one page of a list.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// page reads the query of a list that goes on from a number. from names the number, others the other parameters of the list.
// limit is how many entries the answer may have.
func page(c echo.Context, from string, others ...string) (q url.Values, after int64, limit int, err error) {
	if q, err = query(c, append(others, from, "limit")...); err != nil {
		return nil, 0, 0, err
	}
	if after, err = number(q, from); err != nil {
		return nil, 0, 0, err
	}
	limit, err = pageLimit(q)
	return q, after, limit, err
}

func pageLimit(q url.Values) (int, error) {
	if !q.Has("limit") {
		return defaultLimit, nil
	}
	n, err := item.ParseCount(q.Get("limit"))
	if err != nil || n < 1 || n > maxLimit {
		return 0, malformed("limit must be a whole number from 1 to %d", maxLimit)
	}
	return int(n), nil
}

// pathID reads the cid in the path.
func pathID(c echo.Context) (item.ID, error) {
	return parseID(field{name: "cid", value: []byte(c.Param("cid"))})
}

// number reads a parameter of the query; it is 0 where the query lacks it.
func number(q url.Values, name string) (int64, error) {
	if !q.Has(name) {
		return 0, nil
	}
	n, err := item.ParseCount(q.Get(name))
	if err != nil {
		return 0, malformed("%s %v", name, err)
	}
	return int64(n), nil
}

// flexID is a cid in JSON, as a number or as a string of digits.
type flexID string

// UnmarshalJSON keeps the text for parseID, whose errors name the parameter.
func (f *flexID) UnmarshalJSON(b []byte) error {
	*f = flexID(b)
	if b[0] == '"' {
		s, err := strconv.Unquote(string(b))
		if err != nil {
			return malformed("cid is not a number")
		}
		*f = flexID(s)
	}
	return nil
}
