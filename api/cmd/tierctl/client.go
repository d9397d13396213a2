package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// client calls the api.
type client struct {
	base *url.URL
	key  string // "" for none
}

// raw is JSON that is sent as it is.
type raw []byte

// timeout bounds every call but the stream of events.
const timeout = 30 * time.Second

// problem is what the api says of an error (RFC 9457).
type problem struct {
	Type, Title, Detail string
}

// request makes a call; the caller closes the answer's body. An answer that is an error comes as one, with its detail.
func (c *client) request(ctx context.Context, method, path string, query url.Values, body any, header http.Header) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	var content io.Reader
	switch body := body.(type) {
	case nil:
	case raw:
		content = bytes.NewReader(body)
	default:
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	var p problem
	if json.Unmarshal(text, &p) != nil || p.Detail == "" {
		return nil, &refusal{resp.StatusCode, fmt.Sprintf("%s %s: %s: is this Tierflow's api?", method, u, resp.Status)}
	}
	return nil, &refusal{resp.StatusCode, fmt.Sprintf("%s (%d %s)", p.Detail, resp.StatusCode, strings.TrimPrefix(p.Type, "/problems/"))}
}

// refusal is an answer that is an error.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// show makes a call and shows its answer.
func (c *client) show(ctx context.Context, method, path string, query url.Values, body any, v view, show func(view, []byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.request(ctx, method, path, query, body, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if v.json {
		if len(text) > 0 {
			_, err = fmt.Fprintf(v.out, "%s\n", bytes.TrimRight(text, "\n"))
		}
		return err
	}
	return show(v, text)
}

// watch shows what is in flight every second until ctx ends.
func (c *client) watch(ctx context.Context, v view) error {
	for {
		v.clear()
		if err := c.show(ctx, http.MethodGet, "/v1/relocations", query("limit", "1000"), nil, v, view.relocations); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// events shows what happens until ctx ends. A connection that is lost is made again, where it broke off; what the api
// refuses is an error.
func (c *client) events(ctx context.Context, v view) error {
	last := ""
	for {
		err := c.stream(ctx, v, &last)
		var refused *refusal
		if ctx.Err() != nil {
			return nil
		}
		if errors.As(err, &refused) && refused.status < 500 || last == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// stream reads one connection of server-sent events. last is the id of the last event.
func (c *client) stream(ctx context.Context, v view, last *string) error {
	header := http.Header{}
	if *last != "" {
		header.Set("Last-Event-ID", *last)
	}
	resp, err := c.request(ctx, http.MethodGet, "/v1/events", nil, nil, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var e happening
	for lines.Scan() {
		name, value, found := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case !found && name == "": // the end of an event
			if e.ID != "" {
				*last = e.ID
			}
			if e.Event != "" {
				if err := v.happened(e); err != nil {
					return err
				}
			}
			e = happening{}
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
