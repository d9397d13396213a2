package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/fault"
)

// served is a Client of a server that gives one answer to everything, and the requests that it has got.
func served(t *testing.T, status int, body string) (*client.Client, *[]string) {
	t.Helper()
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", r.Header.Get("Authorization"), " ",
			r.Header.Get("Content-Type"), " ", r.Header.Get("Last-Event-ID"), string(b))))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return client.New(base, "k"), &got
}

func TestEveryMethodMakesItsCall(t *testing.T) {
	ctx := t.Context()
	level := "gold"
	for want, call := range map[string]func(*client.Client) error{
		"POST /post_sentence Bearer k application/x-www-form-urlencoded cid=7&count=8": func(c *client.Client) error {
			return second(c.PostSentence(ctx, client.View{CID: 7, Count: 8}))
		},
		"POST /update_sentence Bearer k application/x-www-form-urlencoded cid=7": func(c *client.Client) error { return second(c.UpdateSentence(ctx, 7)) },
		`POST /v1/views Bearer k application/json {"cid":7,"count":8}`: func(c *client.Client) error {
			return second(c.PostView(ctx, client.View{CID: 7, Count: 8}))
		},
		"POST /v1/views Bearer k application/x-ndjson {\"cid\":7,\"count\":8}\n{\"cid\":9,\"count\":0}": func(c *client.Client) error {
			return second(c.PostViews(ctx, []client.View{{CID: 7, Count: 8}, {CID: 9}}))
		},
		"GET /v1/contents?after=5&filename=a%2Fb&level=gold&limit=3 Bearer k": func(c *client.Client) error {
			return second(c.Items(ctx, client.ItemFilter{Level: "gold", Filename: "a/b"}, client.Page{After: "5", Limit: 3}))
		},
		"GET /v1/contents Bearer k":   func(c *client.Client) error { return second(c.Items(ctx, client.ItemFilter{}, client.Page{})) },
		"GET /v1/contents/7 Bearer k": func(c *client.Client) error { return second(c.Item(ctx, 7)) },
		`POST /v1/contents Bearer k application/json {"cid":7,"filename":"a","level":"gold"}`: func(c *client.Client) error {
			return second(c.Register(ctx, client.NewItem{CID: 7, Filename: "a", Level: &level}))
		},
		`POST /v1/contents Bearer k application/json {"cid":7,"filename":"a"}`: func(c *client.Client) error {
			return second(c.Register(ctx, client.NewItem{CID: 7, Filename: "a"}))
		},
		"DELETE /v1/contents/7 Bearer k":                                    func(c *client.Client) error { return c.Forget(ctx, 7) },
		"GET /v1/contents/7/location Bearer k":                              func(c *client.Client) error { return second(c.Location(ctx, 7)) },
		"GET /v1/contents/7/history?before=9&limit=2 Bearer k":              func(c *client.Client) error { return second(c.History(ctx, 7, 9, 2)) },
		`PUT /v1/contents/7/pin Bearer k application/json {"level":"gold"}`: func(c *client.Client) error { return second(c.Pin(ctx, 7, client.Pin{Level: "gold"})) },
		"DELETE /v1/contents/7/pin Bearer k":                                func(c *client.Client) error { return second(c.Unpin(ctx, 7)) },
		"GET /v1/status Bearer k":                                           func(c *client.Client) error { return second(c.Status(ctx)) },
		"GET /v1/waiting?cid=7&limit=2 Bearer k":                            func(c *client.Client) error { return second(c.Waiting(ctx, 7, 2)) },
		"GET /v1/waiting Bearer k":                                          func(c *client.Client) error { return second(c.Waiting(ctx, 0, 0)) },
		"GET /v1/levels Bearer k":                                           func(c *client.Client) error { return second(c.Levels(ctx)) },
		`PUT /v1/levels Bearer k application/json {"a":1,"a":2}`:            func(c *client.Client) error { return second(c.SetLevels(ctx, []byte(`{"a":1,"a":2}`))) },
		`POST /v1/levels/plan Bearer k application/json {"a":1}`:            func(c *client.Client) error { return second(c.PlanLevels(ctx, []byte(`{"a":1}`))) },
		"GET /v1/relocations?after=p07%3A1-0 Bearer k": func(c *client.Client) error {
			return second(c.Relocations(ctx, client.Page{After: "p07:1-0"}))
		},
		"POST /v1/pause Bearer k":              func(c *client.Client) error { return second(c.Pause(ctx)) },
		"POST /v1/resume Bearer k":             func(c *client.Client) error { return second(c.Resume(ctx)) },
		"GET /v1/dead?limit=2 Bearer k":        func(c *client.Client) error { return second(c.DeadLetters(ctx, client.Page{Limit: 2})) },
		"POST /v1/dead/p07:1-0/retry Bearer k": func(c *client.Client) error { return second(c.Retry(ctx, "p07:1-0")) },
		"DELETE /v1/dead/1-0 Bearer k":         func(c *client.Client) error { return c.Drop(ctx, "1-0") },
		"GET /v1/events Bearer k  1-0;2":       func(c *client.Client) error { return c.Events(ctx, "1-0;2", nil) },
		"GET /metrics Bearer k":                func(c *client.Client) error { return second(c.Get(ctx, "/metrics", nil)) },
	} {
		c, got := served(t, http.StatusOK, "{}")
		if err := call(c); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if len(*got) != 1 || (*got)[0] != want {
			t.Errorf("%q, want %q", *got, want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestARefusalIsAProblemWithItsKind(t *testing.T) {
	c, _ := served(t, http.StatusNotFound, `{"type":"/problems/unknown-content","title":"x","status":404,"detail":"there is no item 7"}`)
	_, err := c.Item(t.Context(), 7)
	var p *client.Problem
	if !errors.As(err, &p) || p.Kind() != fault.Unknown || p.Status != 404 || p.Batch != nil || err.Error() != "there is no item 7 (404 unknown-content)" {
		t.Errorf("%v", err)
	}
}

func TestABatchThatBreaksOffSaysHowFarItCame(t *testing.T) {
	c, _ := served(t, http.StatusServiceUnavailable, `{"type":"/problems/unavailable","title":"x","status":503,"detail":"Redis",
		"accepted":4,"refused":[{"line":2,"type":"/problems/malformed","detail":"y"}],"refused_total":1,"lines_done":5}`)
	_, err := c.PostViews(t.Context(), make([]client.View, 9))
	var p *client.Problem
	if !errors.As(err, &p) || p.Batch == nil || p.Accepted != 4 || *p.LinesDone != 5 || p.Refused[0].Kind() != fault.Malformed {
		t.Errorf("%v", err)
	}
}

func TestAnAnswerOfSomethingElseIsAnError(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusBadGateway} {
		c, _ := served(t, status, "<html>")
		if _, err := c.Levels(t.Context()); err == nil || !strings.Contains(err.Error(), "is this Tierflow's api?") {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestEventsComeWithNamePositionAndData(t *testing.T) {
	c, _ := served(t, http.StatusOK, "retry: 1000\nid: 0\n\n: a comment\n\nevent: views\nid: 1-0\ndata: {\"cid\":\"7\"}\n\nevent: progress\ndata: {}\n\nevent: cut")
	var got []string
	err := c.Events(t.Context(), "", func(e client.Event) error {
		got = append(got, fmt.Sprintf("%s|%s|%s", e.Event, e.ID, e.Data))
		return nil
	})
	if want := `[|0| views|1-0|{"cid":"7"} progress||{}]`; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v %v, want %s", got, err, want)
	}
	stop := errors.New("stop")
	if err := c.Events(t.Context(), "", func(client.Event) error { return stop }); err != stop {
		t.Errorf("%v", err)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	c, _ := served(t, http.StatusOK, "{}")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Levels(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
