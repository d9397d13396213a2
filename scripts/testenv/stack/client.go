package stack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
)

// Answer is what an HTTP call brought.
type Answer struct {
	Status int
	Body   string
}

// Post posts a view count to /post_sentence. A 200 is remembered as the content's last count.
func (s *Stack) Post(ctx context.Context, id item.ID, count item.Count) (Answer, error) {
	form := url.Values{"cid": {id.String()}, "count": {count.String()}}
	a, err := s.Call(ctx, http.MethodPost, "/post_sentence", "application/x-www-form-urlencoded", form.Encode())
	if err == nil && a.Status == http.StatusOK {
		s.Posted(id, count)
	}
	return a, err
}

// Posted notes that a count was accepted in another way than Post: CheckSettled asks for its level. Of two counts
// that were posted at the same time nobody knows which is the last: post those of one content one after another.
func (s *Stack) Posted(id item.ID, count item.Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.contents[id]; e != nil {
		e.count, e.posted = count, true
	}
}

// Call makes one call to the api.
func (s *Stack) Call(ctx context.Context, method, path, contentType, body string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.API.Addr+path, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if s.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, string(b)}, err
}

// WaitLevel waits until MySQL names the level as the content's.
func (s *Stack) WaitLevel(ctx context.Context, id item.ID, level string) (catalog.Row, error) {
	var row catalog.Row
	err := poll(ctx, func() (err error) {
		if row, err = s.Catalog.Content(ctx, id); err == nil && row.Level != level {
			err = fmt.Errorf("content %s is on %s and not on %s", id, row.Level, level)
		}
		return err
	})
	return row, err
}

// poll calls check until it returns nil, or until ctx ends: then it returns check's last error.
func poll(ctx context.Context, check func() error) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}
