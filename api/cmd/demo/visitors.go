package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/outage"
)

const (
	visitsPerSecond = 100 // 12,000 in two minutes, about 3,000 of them to the favourite
	browserCount    = 4   // concurrent visitors at the edge
	postInterval    = time.Second
	firstBytes      = "bytes=0-65535" // of the file, which a visitor reads
)

// visit is one visitor and the item that the visitor reads.
type visit struct {
	id     item.ID
	viewer string
}

// crowd makes visits, each by another visitor. Popularity follows Zipf's law: the second item of the ranking has about half
// as many visits as the first, the third a third.
type crowd struct {
	ranking []item.ID
	random  *rand.Rand
	zipf    *rand.Zipf
	visits  int
}

func newCrowd(ids []item.ID) *crowd {
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	return &crowd{ranking: ids, random: random, zipf: rand.NewZipf(random, 1.05, 1, uint64(len(ids)-1))}
}

func (c *crowd) next() visit {
	c.visits++
	return visit{c.ranking[c.zipf.Uint64()], fmt.Sprint("demo visitor ", c.visits)}
}

// change makes another item the favourite. The old favourite becomes the last of the ranking.
func (c *crowd) change() item.ID {
	last := len(c.ranking) - 1
	at := 1 + c.random.IntN(last)
	c.ranking[0], c.ranking[at] = c.ranking[at], c.ranking[0]
	c.ranking[at], c.ranking[last] = c.ranking[last], c.ranking[at]
	return c.ranking[0]
}

// browse reads the beginning of the file of each visit from the edge, until ctx ends.
func browse(ctx context.Context, edge *url.URL, visits <-chan visit, reads *outage.Outage) {
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-visits:
			if err := v.read(ctx, edge); err != nil {
				reads.Failed(err, zap.Stringer("cid", v.id))
			} else {
				reads.Succeeded()
			}
		}
	}
}

func (v visit) read(ctx context.Context, edge *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, edge.JoinPath("/v1/contents", v.id.String(), "file").String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", v.viewer)
	req.Header.Set("Range", firstBytes)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
