package stack

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
)

// Client returns a client of the stack's api.
func (s *Stack) Client() *client.Client {
	return client.New(&url.URL{Scheme: "http", Host: s.API.Addr}, s.key)
}

// Post posts a view event by the call of the original system. When the api accepts it, CheckSettled expects its count.
func (s *Stack) Post(ctx context.Context, id item.ID, count item.Count) error {
	_, err := s.Client().PostSentence(ctx, client.View{CID: id, Count: count})
	if err == nil {
		s.Posted(id, count)
	}
	return err
}

// PostAll posts view events as one batch. It is an error when the api does not accept all of them. When it does, CheckSettled
// expects the last count of each item.
func (s *Stack) PostAll(ctx context.Context, views []client.View) error {
	batch, err := s.Client().PostViews(ctx, views)
	if err == nil && batch.Accepted != int64(len(views)) {
		err = fmt.Errorf("a batch of %d view events: %d were accepted: %+v", len(views), batch.Accepted, batch.Refused)
	}
	if err != nil {
		return err
	}
	for _, v := range views {
		s.Posted(v.CID, v.Count)
	}
	return nil
}

// Posted records that the api accepted a count that neither Post nor PostAll posted: CheckSettled expects it. Post the
// counts of one item one after another: of two counts that are under way at once, either can be the last.
func (s *Stack) Posted(id item.ID, count item.Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.expected[id]; e != nil {
		e.count, e.posted = count, true
	}
}

// WaitLevel waits until the item's row in MySQL names the level.
func (s *Stack) WaitLevel(ctx context.Context, id item.ID, level string) (catalog.Row, error) {
	var row catalog.Row
	err := poll(ctx, func() (err error) {
		if row, err = s.Catalog.Row(ctx, id); err == nil && row.Level != level {
			err = fmt.Errorf("item %s is on %s and not on %s", id, row.Level, level)
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
