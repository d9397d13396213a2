package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
	"github.com/tierflow/tierflow/shared/state"
)

// workerID is the worker in the lock and in the entry of a row that is corrected.
const workerID = "verify"

// mend has the committer make a row name the one other level that has the item: steps 2 to 5 of the protocol, with a copy that
// is there already. It returns what was done, or why nothing was.
func (r *run) mend(ctx context.Context, d suspicion) (string, error) {
	const left = "left: put the file there, or correct the row"
	to, why, err := r.onlyHolder(ctx, d)
	switch {
	case err != nil:
		return "", err
	case why != "":
		return left + "; " + why, nil
	case to.Name == "":
		return left, nil
	case d.row.Digest == "" && !r.o.BySize:
		return left + "; " + to.Name + " has a file, but the row has no digest to compare it with: see --by-size", nil
	case d.row.Digest == "" && d.row.SizeBytes == 0:
		return left + "; " + to.Name + " has a file, but the row has neither a digest nor a size", nil
	}
	eventID := uuid.Must(uuid.NewV7()).String()
	token := state.NewToken(eventID, workerID, strings.ReplaceAll(uuid.NewString(), "-", ""))
	holder, err := r.o.Store.Lock(ctx, d.ID, token)
	if err != nil {
		return "", err
	}
	if holder != "" {
		return "left: somebody works on the item", nil
	}
	stop := r.keepLock(ctx, d.ID, token)
	why, emitted, err := r.emit(ctx, d, to, eventID, token)
	stop()
	if emitted {
		return "the committer was told that the row must name " + to.Name, nil
	}
	if uerr := r.o.Store.Unlock(context.WithoutCancel(ctx), d.ID, token); err == nil {
		err = uerr
	}
	return left + "; " + why, err
}

// onlyHolder returns the one level, other than the row's, whose tier has a file or folder with the item's name; why says why
// there is none that counts. All tiers must have been looked at.
func (r *run) onlyHolder(ctx context.Context, d suspicion) (to policy.Level, why string, err error) {
	var holders []string
	for _, l := range r.policy.Levels() {
		if l.Name == d.row.Level {
			continue
		}
		_, absent, err := r.stat(ctx, l.Name, d.row.Filename)
		if errors.Is(err, errNotLooked) {
			return policy.Level{}, l.Name + " was not looked at, and may have it as well", nil
		}
		if err != nil {
			return policy.Level{}, "", err
		}
		if absent == "" {
			holders, to = append(holders, l.Name), l
		}
	}
	if len(holders) > 1 {
		return policy.Level{}, strings.Join(holders, " and ") + " have a file", nil
	}
	return to, "", nil
}

// keepLock renews a lock until stop is called. A lock that is lost is noticed when the entry is appended.
func (r *run) keepLock(ctx context.Context, id item.ID, token state.Token) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(r.o.Lease / 3):
				_, _ = r.o.Store.Renew(ctx, id, token)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// emit looks everything up again under the lock, makes the file on to the item's, and tells the committer.
func (r *run) emit(ctx context.Context, d suspicion, to policy.Level, eventID string, token state.Token) (why string, emitted bool, err error) {
	began := time.Now()
	row, err := r.o.Catalog.Row(ctx, d.ID)
	if err != nil {
		return "", false, err
	}
	if changed(d.row, row) {
		return "the row has changed meanwhile", false, nil
	}
	var made mover.Claimed
	var failed error
	err = r.ask(ctx, to.Name, func() error {
		made, failed = r.mover.Claim(ctx, row.ID, row.Filename, to)
		return nil
	})
	if errors.Is(err, errNotLooked) {
		return to.Name + " was not looked at to its end", false, nil
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return "", false, err
	}
	switch {
	case failed != nil:
		return failed.Error(), false, nil
	case row.Digest != "" && made.Digest != row.Digest:
		return fmt.Sprintf("the bytes on %s have %s, the last copy had %s", to.Name, made.Digest, row.Digest), false, nil
	case row.Digest == "" && made.Bytes != row.SizeBytes:
		return fmt.Sprintf("%s has %d bytes, the last copy had %d", to.Name, made.Bytes, row.SizeBytes), false, nil
	}
	if _, absent, err := r.stat(ctx, row.Level, row.Filename); err != nil || absent == "" {
		if errors.Is(err, errNotLooked) {
			err = nil
		}
		return "it cannot be told any more that the row's level does not have it", false, err
	}
	count, entry := row.ViewCount, row.CountEntry
	if d.state != nil && !entryid.Newer(entry, d.state.EntryID) { // the commits that were lost had newer counts, too
		count, entry = d.state.Count, d.state.EntryID
	}
	emitted, err = r.o.Store.Correct(ctx, token, event.Relocated{
		EventID: eventID, ID: row.ID, From: row.Level, To: to.Name, Filename: row.Filename, Generation: row.Generation,
		Count: count, Bytes: made.Bytes, Digest: made.Digest, Method: mover.Found, WorkerID: workerID,
		StartedAt: began, FinishedAt: time.Now(), CountEntry: entry,
	})
	return "somebody works on the item", emitted, err
}
