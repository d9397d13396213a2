package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/item"
)

// timeout bounds every call but a batch, a plan and the stream of events, which may take as long as their context.
const timeout = 30 * time.Second

const (
	formType   = "application/x-www-form-urlencoded"
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

// Client calls one api. Several goroutines may use it at once.
//
// Every method returns a *Problem where the api refuses the call, and another error where the api cannot be reached or its
// answer cannot be read. No call is repeated: after such another error the api may or may not have done it.
type Client struct {
	// OnAnswer, where it is set before the first call, gets the body of every successful answer as the api sent it.
	OnAnswer func(body []byte)

	base *url.URL
	key  string
}

// New makes a Client of the api at base. key is an API key; "" sends none.
func New(base *url.URL, key string) *Client { return &Client{base: base, key: key} }

// Page says which part of a list to read. The zero Page is the beginning, up to the api's default limit.
type Page struct {
	After string // NextAfter of the page before; "": from the beginning
	Limit int    // 1 to 1000; 0: the api's default
}

func (p Page) query() url.Values {
	q := url.Values{}
	if p.After != "" {
		q.Set("after", p.After)
	}
	if p.Limit != 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	return q
}

// PostSentence posts a view event by the call of the original system.
func (c *Client) PostSentence(ctx context.Context, v View) (Sentence, error) {
	form := url.Values{"cid": {v.CID.String()}, "count": {v.Count.String()}}
	return call[Sentence](ctx, c, request{method: http.MethodPost, path: "/post_sentence", contentType: formType,
		body: strings.NewReader(form.Encode())})
}

// UpdateSentence asks whether an item is where its newest view event wants it. The api waits up to two seconds for a commit.
func (c *Client) UpdateSentence(ctx context.Context, id item.ID) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	text, err := c.read(ctx, request{method: http.MethodPost, path: "/update_sentence", contentType: formType,
		body: strings.NewReader("cid=" + id.String())})
	return string(text) == id.String(), err
}

// PostView posts one view event. When it returns no error the event is in the stream.
func (c *Client) PostView(ctx context.Context, v View) (Accepted, error) {
	return callJSON[Accepted](ctx, c, http.MethodPost, "/v1/views", v)
}

// PostViews posts view events as one batch. Line numbers in the result are indexes into views, counted from 1.
func (c *Client) PostViews(ctx context.Context, views []View) (Batch, error) {
	var lines bytes.Buffer
	for _, v := range views {
		fmt.Fprintf(&lines, "{\"cid\":%s,\"count\":%s}\n", v.CID, v.Count)
	}
	return c.PostLines(ctx, &lines)
}

// PostLines posts a batch of any length, one View a line as JSON (NDJSON). Refused lines are no error. Where the api stops
// before the end, the error is a *Problem whose Batch says how far it came.
func (c *Client) PostLines(ctx context.Context, lines io.Reader) (Batch, error) {
	return decode[Batch](c.read(ctx, request{method: http.MethodPost, path: "/v1/views", contentType: ndjsonType, body: lines}))
}

// ItemFilter says which items to list. The zero ItemFilter is all of them.
type ItemFilter struct {
	Level    string
	Filename string // exactly this name
}

// Items lists items, ascending by cid.
func (c *Client) Items(ctx context.Context, filter ItemFilter, page Page) (Items, error) {
	q := page.query()
	if filter.Level != "" {
		q.Set("level", filter.Level)
	}
	if filter.Filename != "" {
		q.Set("filename", filter.Filename)
	}
	return get[Items](ctx, c, "/v1/contents", q)
}

// Item reads one item.
func (c *Client) Item(ctx context.Context, id item.ID) (Item, error) {
	return get[Item](ctx, c, itemPath(id), nil)
}

// Register registers an item whose file is already in its place.
func (c *Client) Register(ctx context.Context, n NewItem) (Item, error) {
	return callJSON[Item](ctx, c, http.MethodPost, "/v1/contents", n)
}

// Forget deletes the row of an item. The file stays.
func (c *Client) Forget(ctx context.Context, id item.ID) error {
	return c.do(ctx, http.MethodDelete, itemPath(id))
}

// Location reads where the file of an item is now.
func (c *Client) Location(ctx context.Context, id item.ID) (Location, error) {
	return get[Location](ctx, c, itemPath(id)+"/location", nil)
}

// History lists the moves of an item, newest first. before is NextBefore of the page before, 0 for the newest; limit is 1
// to 1000, 0 for the api's default.
func (c *Client) History(ctx context.Context, id item.ID, before int64, limit int) (History, error) {
	q := Page{Limit: limit}.query()
	if before != 0 {
		q.Set("before", strconv.FormatInt(before, 10))
	}
	return get[History](ctx, c, itemPath(id)+"/history", q)
}

// Pin holds an item on a level, whatever its count.
func (c *Client) Pin(ctx context.Context, id item.ID, pin Pin) (Item, error) {
	return callJSON[Item](ctx, c, http.MethodPut, itemPath(id)+"/pin", pin)
}

// Unpin lets a pinned item follow its count again.
func (c *Client) Unpin(ctx context.Context, id item.ID) (Item, error) {
	return call[Item](ctx, c, request{method: http.MethodDelete, path: itemPath(id) + "/pin"})
}

// Levels reads the levels.
func (c *Client) Levels(ctx context.Context) (Levels, error) {
	return get[Levels](ctx, c, "/v1/levels", nil)
}

// SetLevels replaces all levels by those of a document: Levels as JSON. The document goes to the api as it is, so that the
// api finds every mistake in it.
func (c *Client) SetLevels(ctx context.Context, document []byte) (Levels, error) {
	return call[Levels](ctx, c, request{method: http.MethodPut, path: "/v1/levels", contentType: jsonType, body: bytes.NewReader(document)})
}

// PlanLevels says what a document of levels would move. It changes nothing. It takes some seconds for each
// million items, and so as long as its context.
func (c *Client) PlanLevels(ctx context.Context, document []byte) (Plan, error) {
	return decode[Plan](c.read(ctx, request{method: http.MethodPost, path: "/v1/levels/plan", contentType: jsonType, body: bytes.NewReader(document)}))
}

// Status reads how everything is, and what waits for a human.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Relocations lists what is in flight, oldest first.
func (c *Client) Relocations(ctx context.Context, page Page) (Relocations, error) {
	return get[Relocations](ctx, c, "/v1/relocations", page.query())
}

// Waiting lists up to limit entries that wait at workers, and why; those of one item where id is not 0. limit is 1 to 1000,
// 0 for the api's default.
func (c *Client) Waiting(ctx context.Context, id item.ID, limit int) (Waiting, error) {
	q := Page{Limit: limit}.query()
	if id != 0 {
		q.Set("cid", id.String())
	}
	return get[Waiting](ctx, c, "/v1/waiting", q)
}

// Pause stops relocations. The api goes on to accept view events.
func (c *Client) Pause(ctx context.Context) (Paused, error) {
	return call[Paused](ctx, c, request{method: http.MethodPost, path: "/v1/pause"})
}

// Resume ends a pause.
func (c *Client) Resume(ctx context.Context) (Paused, error) {
	return call[Paused](ctx, c, request{method: http.MethodPost, path: "/v1/resume"})
}

// DeadLetters lists dead letters, oldest first.
func (c *Client) DeadLetters(ctx context.Context, page Page) (DeadLetters, error) {
	return get[DeadLetters](ctx, c, "/v1/dead", page.query())
}

// Retry appends a dead letter to its stream again.
func (c *Client) Retry(ctx context.Context, id string) (Retried, error) {
	return call[Retried](ctx, c, request{method: http.MethodPost, path: deadPath(id) + "/retry"})
}

// Drop deletes a dead letter.
func (c *Client) Drop(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, deadPath(id))
}

// Events calls each with every server-sent event of one connection, from after the position last; "" is from now on. It
// returns the error of each, the error of the connection, or nil where the api closed it. To resume, call it again with
// the ID of the last event that had one: the first event has nothing but an ID.
func (c *Client) Events(ctx context.Context, last string, each func(Event) error) error {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/v1/events", lastEventID: last})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var e Event
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "": // the end of an event
			if e.ID != "" || e.Event != "" {
				if err := each(e); err != nil {
					return err
				}
			}
			e = Event{}
		case name == "event":
			e.Event = value
		case name == "id":
			e.ID = value
		case name == "data":
			e.Data = json.RawMessage(value)
		}
	}
	return lines.Err()
}

// Get reads what no other method reads, such as /metrics.
func (c *Client) Get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.read(ctx, request{method: http.MethodGet, path: path, query: query})
}

func itemPath(id item.ID) string { return "/v1/contents/" + id.String() }
func deadPath(id string) string  { return "/v1/dead/" + url.PathEscape(id) }

// request is one HTTP request.
type request struct {
	method, path string // path is escaped
	query        url.Values
	contentType  string // "" without a body
	body         io.Reader
	lastEventID  string
}

// send makes a request. The caller closes the answer's body. A status that is not 2xx is a *Problem.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	u := c.base.JoinPath(r.path)
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), r.body)
	if err != nil {
		return nil, err
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.lastEventID != "" {
		req.Header.Set("Last-Event-ID", r.lastEventID)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode/100 == 2 {
		return resp, err
	}
	defer resp.Body.Close()
	// A problem names up to 1000 refused lines.
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	return nil, problemOf(resp, text)
}

// read makes a request and reads its answer.
func (c *Client) read(ctx context.Context, r request) ([]byte, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && c.OnAnswer != nil {
		c.OnAnswer(body)
	}
	return body, err
}

// do makes a call that has no body, and an answer without one.
func (c *Client) do(ctx context.Context, method, path string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := c.read(ctx, request{method: method, path: path})
	return err
}

// call makes a call and reads its answer, which is JSON.
func call[T any](ctx context.Context, c *Client, r request) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return decode[T](c.read(ctx, r))
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	return call[T](ctx, c, request{method: http.MethodGet, path: path, query: query})
}

// callJSON is call with a body of JSON.
func callJSON[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return answer, err
	}
	return call[T](ctx, c, request{method: method, path: path, contentType: jsonType, body: bytes.NewReader(text)})
}

func decode[T any](body []byte, err error) (answer T, _ error) {
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("the answer cannot be read: %w: is this Tierflow's api?", err)
	}
	return answer, nil
}
