package viewcount

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/fault"
)

// maxBatch is how many counts one batch has. The api lists no more refused lines than that.
const maxBatch = 1000

// timeout bounds one batch.
const timeout = 30 * time.Second

// Poster posts counts to the api.
type Poster struct {
	API *client.Client // with a key that has the scope views
}

// Post posts all counts that have changed. It returns how many the api accepted and how many it refused for good, such as
// those of unknown items. After an error, the remaining counts stay changed for the next Post. The api may get a count
// twice. That is harmless: a count is a number and not an increment.
func (p *Poster) Post(ctx context.Context, w *Window) (accepted, refused int, err error) {
	for views := range slices.Chunk(w.Changed(), maxBatch) {
		a, r, err := p.post(ctx, w, views)
		accepted, refused = accepted+a, refused+r
		if err != nil {
			return accepted, refused, err
		}
	}
	return accepted, refused, nil
}

func (p *Poster) post(ctx context.Context, w *Window, views []client.View) (accepted, refused int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := len(views) // every line up to this one was accepted or refused
	b, err := p.API.PostViews(ctx, views)
	if err != nil {
		done = 0
		var problem *client.Problem
		if errors.As(err, &problem) && problem.Batch != nil {
			b = *problem.Batch
			if b.LinesDone != nil {
				done = min(int(*b.LinesDone), len(views))
			}
		}
		err = fmt.Errorf("post a batch of counts: %w", err)
	}
	kinds := map[int64]fault.Kind{}
	for _, r := range b.Refused {
		kinds[r.Line] = r.Kind()
		if r.Kind() == fault.Unavailable && err == nil {
			err = fmt.Errorf("post a batch of counts: line %d: %s", r.Line, r.Detail)
		}
	}
	for i, v := range views[:done] {
		switch kinds[int64(i+1)] {
		case "":
			accepted++
		case fault.Unavailable:
			continue // the api may accept it later
		default:
			refused++
		}
		w.Told(v.CID)
	}
	return accepted, refused, err
}
