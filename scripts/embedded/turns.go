package main

import (
	"context"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dolthub/go-mysql-server/server"
	"github.com/dolthub/go-mysql-server/sql"
	"github.com/dolthub/go-mysql-server/sql/plan"
	"github.com/dolthub/vitess/go/mysql"
	"github.com/dolthub/vitess/go/sqltypes"
	querypb "github.com/dolthub/vitess/go/vt/proto/query"
)

// turns lets one transaction run at a time. The engine's tables in memory need it: a session works on its own
// copies of the tables that it touches. Its commit writes back whole tables, also those that it has only read, and so
// overwrites what others have committed meanwhile. So a connection has the turn from its first statement that may touch
// a table until its transaction is over, or until it is closed. A connection that waits too long gets error 1205, as
// from a lock.
//
// The price is that readers wait as well, and that a transaction left open blocks all other connections.
type turns struct {
	mysql.Handler
	sessions *server.SessionManager
	wait     time.Duration

	taken  chan struct{} // full while a connection has the turn; the others get it in the order in which they came
	holder atomic.Uint32 // the id of the connection that has the turn, or 0; only this connection gives it back
}

func newTurns(next mysql.Handler, sessions *server.SessionManager, wait time.Duration) *turns {
	return &turns{Handler: next, sessions: sessions, wait: wait, taken: make(chan struct{}, 1)}
}

// ComQuery and the next three methods receive the statements. ComMultiQuery runs the first statement of its query and
// returns the rest.

func (t *turns) ComQuery(ctx context.Context, c *mysql.Conn, query string, callback mysql.ResultSpoolFn) error {
	return t.run(c, query, func() error { return t.Handler.ComQuery(ctx, c, query, callback) })
}

func (t *turns) ComMultiQuery(ctx context.Context, c *mysql.Conn, query string, callback mysql.ResultSpoolFn) (rest string, err error) {
	err = t.run(c, query, func() error {
		rest, err = t.Handler.ComMultiQuery(ctx, c, query, callback)
		return err
	})
	return rest, err
}

func (t *turns) ComPrepare(ctx context.Context, c *mysql.Conn, query string, prepare *mysql.PrepareData) (fields []*querypb.Field, err error) {
	err = t.run(c, query, func() error {
		fields, err = t.Handler.ComPrepare(ctx, c, query, prepare)
		return err
	})
	return fields, err
}

func (t *turns) ComStmtExecute(ctx context.Context, c *mysql.Conn, prepare *mysql.PrepareData, callback func(*sqltypes.Result) error) error {
	return t.run(c, prepare.PrepareStmt, func() error { return t.Handler.ComStmtExecute(ctx, c, prepare, callback) })
}

// ComResetConnection forgets the session, and its transaction with it.
func (t *turns) ComResetConnection(c *mysql.Conn) error {
	defer t.giveBack(c)
	return t.Handler.ComResetConnection(c)
}

// ConnectionClosed is called after a panic in a statement too.
func (t *turns) ConnectionClosed(c *mysql.Conn) {
	defer t.giveBack(c)
	t.Handler.ConnectionClosed(c)
}

var aSelect = regexp.MustCompile(`(?i)^\s*select\b`)

// run runs the statement when it is this connection's turn. A SELECT without FROM touches no table and needs no turn.
// SELECT GET_LOCK must not have the turn while it waits, because the lock's owner needs it before it can release the lock.
func (t *turns) run(c *mysql.Conn, query string, statement func() error) error {
	if !aSelect.MatchString(query) || strings.Contains(strings.ToUpper(query), "FROM") {
		if err := t.take(c); err != nil {
			return err
		}
	}
	err := statement()
	if t.over(c) {
		t.giveBack(c)
	}
	return err
}

func (t *turns) take(c *mysql.Conn) error {
	if t.holder.Load() == c.ConnectionID {
		return nil
	}
	timeout := time.NewTimer(t.wait)
	defer timeout.Stop()
	select {
	case t.taken <- struct{}{}:
		t.holder.Store(c.ConnectionID)
		return nil
	case <-timeout.C:
		return mysql.NewSQLError(mysql.ERLockWaitTimeout, mysql.SSUnknownSQLState,
			"Lock wait timeout exceeded; try restarting transaction")
	}
}

func (t *turns) giveBack(c *mysql.Conn) {
	if t.holder.CompareAndSwap(c.ConnectionID, 0) {
		<-t.taken
	}
}

// over reports whether the connection has no transaction that goes on after its last statement. After a failed statement,
// and in later versions after PREPARE, the engine leaves behind a transaction that nobody began. over rolls it back.
// Otherwise its copies of the tables would stay, and the connection's next commit would write back their old rows.
func (t *turns) over(c *mysql.Conn) bool {
	ctx, err := t.sessions.NewContextWithQuery(context.Background(), c, "")
	if err != nil {
		return true // no session, no transaction
	}
	transaction := ctx.GetTransaction()
	if transaction == nil {
		// In MySQL a statement such as CREATE TABLE commits and ends the transaction that BEGIN began. The engine does not end
		// it.
		ctx.SetIgnoreAutoCommit(false)
		return true
	}
	autocommit, err := plan.IsSessionAutocommit(ctx)
	if err == nil && (ctx.GetIgnoreAutoCommit() || !autocommit) {
		return false
	}
	ctx.Session.(sql.TransactionSession).Rollback(ctx, transaction)
	ctx.SetTransaction(nil)
	return true
}
