package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// ForgetLease is the min lease of the locks that Forget takes. The Store of a Registry must have it. Forget explains why.
const ForgetLease = 2 * catalog.IdleSession

// unlockTimeout bounds the end of Forget.
const unlockTimeout = 2 * time.Second

// Forget deletes an item's row and its state in Redis. The file that the row names stays. The error is fault.Unknown where
// there is no row, and fault.Conflict while a move or a release of the item is under way: call again when that is over.
//
// Only the row tells an item's file from a copy of it: without the row, the releaser clears nothing. So a row may be
// deleted only while there is no other copy, and no relocator is about to make one. Forget decides this under the item's
// lock in Redis:
//
//  1. It takes the lock. A relocator or releaser that has it keeps it, and Forget ends with fault.Conflict. From here on none
//     gets it.
//  2. It reads what moves have left to settle. A relocator whose lock has expired may have emitted a move before, which is an
//     entry of `relocated` or, after the commit, of `committed`; a dead letter of the committer shows in the state. None can be
//     added now, because an emit needs the lock. Where there is one, Forget ends with fault.Conflict.
//  3. It deletes the row in a transaction, renews the lock, and commits. The token is new and random: that it can be renewed
//     proves that nobody else has had the lock since step 1. A relocator looks the row up only after it has taken the lock.
//  4. COMMIT takes effect while the lock lasts, even where this process is stopped before it. The DELETE was this session's last
//     statement, and MySQL ends a session, and rolls back, when it is idle for catalog.IdleSession. The lock lasts twice as long.
//  5. It deletes the state and the lock in one script. Who takes the lock now finds no row, and moves nothing.
//
// Where the reply of COMMIT is lost, the lock is left to expire: the row may be gone, or go in a moment.
//
// One copy may remain: that of a relocator which was killed, or stopped for longer than its lease, after it published a
// copy and before it emitted the move. That move is refused, and its copy is reported as a stray. The releaser keeps strays
// without a row, and `relocator verify` lists them.
func (r *Registry) Forget(ctx context.Context, id item.ID) error {
	token := state.NewForgetToken(rand.Text())
	holder, err := r.store.Lock(ctx, id, token)
	if holder != "" {
		return forgetConflict(id, "it is being worked on (%s): try again when that is over", holder)
	}
	if err == nil {
		err = r.noCopyUnderWay(ctx, id)
	}
	if err == nil {
		err = r.deleteRow(ctx, id, token)
	}
	gone := err == nil
	if errors.Is(err, errCommitUnknown) {
		return err
	}
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	unlocked, uerr := r.store.Forget(uctx, id, token, gone)
	if uerr == nil && !unlocked && gone {
		uerr = errors.New("the lock has expired")
	}
	if uerr != nil {
		r.log.Warn("an item's lock is left to expire, and its state stays in Redis where the row is gone",
			zap.Stringer("cid", id), zap.Bool("row_gone", gone), zap.Error(uerr))
	}
	return err
}

func forgetConflict(id item.ID, format string, args ...any) error {
	return fault.New(fault.Conflict, "forget item", id.String(), fmt.Errorf(format, args...))
}

// noCopyUnderWay is step 2 of Forget.
func (r *Registry) noCopyUnderWay(ctx context.Context, id item.ID) error {
	st, ok, err := r.store.Get(ctx, id)
	if err != nil {
		return err
	}
	if ok && st.Status == state.Done && st.DBLevel != st.Target {
		return forgetConflict(id, "its move to %s is made and not committed yet: try again when that is over (or see GET /v1/dead)", st.Target)
	}
	copies, err := r.store.CopiesUnderWay(ctx, id)
	switch {
	case err != nil:
		return err
	case copies.Uncommitted:
		return forgetConflict(id, "a move of it is made and not committed yet: try again when that is over")
	case copies.Unreleased:
		return forgetConflict(id, "an old copy of it is not released yet: try again when that is over")
	}
	return nil
}

// errCommitUnknown means that MySQL may have done a COMMIT or not.
var errCommitUnknown = errors.New("the reply of COMMIT was lost")

// deleteRow is step 3 of Forget.
func (r *Registry) deleteRow(ctx context.Context, id item.ID, token state.Token) error {
	const op = "forget item"
	tx, err := r.db.BeginTx(ctx, nil)
	if err != nil {
		return catalog.Wrap(op, id.String(), err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit; where Rollback fails, MySQL ends the session and rolls back
	res, err := tx.ExecContext(ctx, "DELETE FROM contents WHERE cid = ?", id)
	if err := oneRow(res, op, id, err); err != nil {
		return err
	}
	ours, err := r.store.Renew(ctx, id, token)
	if err != nil {
		return err
	}
	if !ours {
		return forgetConflict(id, "its lock has expired meanwhile: try again")
	}
	if err := tx.Commit(); err != nil {
		return fault.New(fault.Unavailable, op, id.String(), fmt.Errorf("%w: %w", errCommitUnknown, err))
	}
	return nil
}
