package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
)

const (
	sampleCount = 40
	sampleSize  = 1 << 20
	firstSample = item.ID(1_000_000_001) // far from cids that people choose
	timeout     = 30 * time.Second
)

// makeSamples makes the samples that do not exist yet, and returns the ids of all samples. It waits while the api is away.
func makeSamples(ctx context.Context, c *client.Client, log *zap.Logger) ([]item.ID, error) {
	levels, err := waitForLevels(ctx, c, log)
	if err != nil {
		return nil, err
	}
	for _, l := range levels.Levels {
		if l.MinCounts == 0 {
			var ids []item.ID
			for n := range sampleCount {
				id := firstSample + item.ID(n)
				if err := makeSample(ctx, c, id, l.Path, fmt.Sprintf("demo/%02d.mp4", n+1)); err != nil {
					return nil, err
				}
				ids = append(ids, id)
			}
			return ids, nil
		}
	}
	return nil, errors.New("no level starts at 0")
}

// waitForLevels reads the levels as soon as the api answers. A refusal such as 401 ends the wait.
func waitForLevels(ctx context.Context, c *client.Client, log *zap.Logger) (client.Levels, error) {
	answers := outage.Say("waiting for the api", "the api answers", log)
	for {
		levels, err := c.Levels(ctx)
		var p *client.Problem
		if err == nil || errors.As(err, &p) && p.Status < 500 {
			answers.Succeeded()
			return levels, err
		}
		answers.Failed(err)
		select {
		case <-ctx.Done():
			return levels, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// makeSample makes one sample unless it is registered. A file without a row is left from a run that was interrupted.
func makeSample(ctx context.Context, c *client.Client, id item.ID, root, filename string) error {
	is, err := c.Item(ctx, id)
	var p *client.Problem
	switch {
	case err == nil && is.Filename != filename:
		return fmt.Errorf("item %s is %q, and not %q of the demo: forget that item, or do not run the demo", id, is.Filename, filename)
	case err == nil:
		return nil
	case !errors.As(err, &p) || p.Kind() != fault.Unknown:
		return err
	}
	path := filepath.Join(root, filename)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b := make([]byte, sampleSize)
	_, _ = rand.Read(b) // never fails
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	_, err = c.Register(ctx, client.NewItem{CID: id, Filename: filename})
	return err
}
