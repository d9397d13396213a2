package viewcount

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// batch is how many counts are posted at once: so many refused lines the api names one by one.
const batch = 1000

// unavailable is the type of a refusal that has nothing to do with what was posted.
const unavailable = "/problems/unavailable"

// timeout bounds a post.
const timeout = 30 * time.Second

// Poster tells the api what contents' counts are.
type Poster struct {
	URL    *url.URL // of the api
	APIKey string   // with the scope views; "" for none
}

// Post tells all counts that have changed, and returns how many the api took and how many it refused for good, such as
// those of contents that it does not know. An error means that the rest is still to be told. A count may be told twice:
// it is a number and not an increment.
func (p *Poster) Post(ctx context.Context, w *Window) (told, refused int, err error) {
	for views := range slices.Chunk(w.Changed(), batch) {
		took, not, err := p.post(ctx, w, views)
		told, refused = told+took, refused+not
		if err != nil {
			return told, refused, err
		}
	}
	return told, refused, nil
}

// answer is the api's to a batch: as its own, or in a problem.
type answer struct {
	Detail  string `json:"detail"`
	Refused []struct {
		Line   int    `json:"line"`
		Type   string `json:"type"`
		Detail string `json:"detail"`
	} `json:"refused"`
	LinesDone int `json:"lines_done"`
}

func (p *Poster) post(ctx context.Context, w *Window, views []View) (told, refused int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body bytes.Buffer
	for _, v := range views {
		fmt.Fprintf(&body, "{\"cid\":%s,\"count\":%s}\n", v.ID, v.Count)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL.JoinPath("/v1/views").String(), &body)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	if p.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+p.APIKey)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0, 0, err
	}
	var a answer
	err = json.Unmarshal(text, &a)
	switch {
	case resp.StatusCode == http.StatusOK && err == nil:
		a.LinesDone = len(views)
	case resp.StatusCode == http.StatusOK:
		return 0, 0, fmt.Errorf("POST /v1/views: %w", err)
	default:
		err = fmt.Errorf("POST /v1/views: %s: %s", resp.Status, a.Detail)
	}
	refusals := map[int]string{}
	for _, r := range a.Refused {
		refusals[r.Line] = r.Type
		if r.Type == unavailable && err == nil {
			err = fmt.Errorf("POST /v1/views: %s", r.Detail)
		}
	}
	for i, v := range views[:min(a.LinesDone, len(views))] {
		switch refusals[i+1] {
		case "":
			told++
		case unavailable:
			continue // it may be accepted later
		default:
			refused++
		}
		w.Told(v.ID)
	}
	return told, refused, err
}
