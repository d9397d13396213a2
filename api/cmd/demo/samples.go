package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/item"
)

const (
	sampleCount = 40
	sampleSize  = 1 << 20
	firstSample = item.ID(1_000_000_001) // far from what somebody would take by hand
	timeout     = 30 * time.Second
)

// client calls the api.
type client struct {
	base *url.URL
	key  string // "" for none
}

// call makes a call; the answer to one that fails is an error. It returns the status for those who expect one.
func (c client) call(ctx context.Context, method, path string, body, answer any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path).String(), in)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode >= 300 {
		return resp.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(b))
	}
	if answer == nil {
		return resp.StatusCode, nil
	}
	return resp.StatusCode, json.Unmarshal(b, answer)
}

// samples makes those samples that are not there yet, and returns the ids of all. While the api is away it waits.
func (c client) samples(ctx context.Context, log *zap.Logger) ([]item.ID, error) {
	var levels struct {
		Levels []struct {
			MinCounts int64  `json:"min_counts"`
			Path      string `json:"path"`
		} `json:"levels"`
	}
	for {
		status, err := c.call(ctx, http.MethodGet, "/v1/levels", nil, &levels)
		if err == nil {
			break
		}
		if status >= 400 && status < 500 {
			return nil, err
		}
		log.Warn("waiting for the api", zap.Error(err))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
	for _, l := range levels.Levels {
		if l.MinCounts == 0 {
			var ids []item.ID
			for n := range sampleCount {
				id := firstSample + item.ID(n)
				if err := c.sample(ctx, id, l.Path, fmt.Sprintf("demo/%02d.mp4", n+1)); err != nil {
					return nil, err
				}
				ids = append(ids, id)
			}
			return ids, nil
		}
	}
	return nil, errors.New("no level begins at 0")
}

// sample makes one where it is not there yet. A file that nobody has registered is one that was interrupted.
func (c client) sample(ctx context.Context, id item.ID, root, filename string) error {
	var is struct {
		Filename string `json:"filename"`
	}
	switch status, err := c.call(ctx, http.MethodGet, "/v1/contents/"+id.String(), nil, &is); {
	case err == nil && is.Filename != filename:
		return fmt.Errorf("content %s is %q, and not the demo's %q: forget it, or do without the demo", id, is.Filename, filename)
	case err == nil:
		return nil
	case status != http.StatusNotFound:
		return err
	}
	path := filepath.Join(root, filename)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b := make([]byte, sampleSize)
	_, _ = rand.Read(b) // it never fails
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	_, err := c.call(ctx, http.MethodPost, "/v1/contents", map[string]any{"cid": id, "filename": filename}, nil)
	return err
}
