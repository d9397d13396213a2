package catalog

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
)

// connector opens sessions with the isolation level of all of Tierflow's transactions. Setting it in each transaction would
// cost one more round trip. A DSN cannot set it, because MySQL and MariaDB have different names for the variable.
type connector struct {
	driver.Connector
	lockWait time.Duration // 0: the server's default
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, connectError{err}
	}
	s := session{conn.(mysqlConn)}
	_, err = s.ExecContext(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", nil)
	if err != nil {
		_ = conn.Close() // the statement's error says more
		return nil, connectError{err}
	}
	if c.lockWait > 0 {
		// go-mysql-server refuses this statement: there, only the server can set the variable.
		_, err = s.ExecContext(ctx, fmt.Sprintf("SET SESSION innodb_lock_wait_timeout = %d", int(c.lockWait.Seconds())), nil)
		var refused *mysql.MySQLError
		if err != nil && !errors.As(err, &refused) {
			_ = conn.Close()
			return nil, connectError{err}
		}
	}
	return s, nil
}

// connectError says why there is no session. Whatever the reason, no row has caused it.
type connectError struct{ error }

func (e connectError) Unwrap() error { return e.error }

// mysqlConn is the set of interfaces that the driver's connections implement.
type mysqlConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// session closes itself where the server refuses writes. After a failover, a new connection leads to the new primary. A new
// session also has the settings that an operator has corrected. The driver's RejectReadOnly does the same for some errors,
// but drops the server's text.
type session struct{ mysqlConn }

func (s session) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	r, err := s.mysqlConn.ExecContext(ctx, query, args)
	return r, s.checked(err)
}

func (s session) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	r, err := s.mysqlConn.QueryContext(ctx, query, args)
	return r, s.checked(err)
}

func (s session) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := s.mysqlConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, s.checked(err)
	}
	return transaction{tx, s}, nil
}

type transaction struct {
	driver.Tx
	session session
}

func (t transaction) Commit() error { return t.session.checked(t.Tx.Commit()) }

// checked closes the connection where the server refuses writes.
func (s session) checked(err error) error {
	var m *mysql.MySQLError
	if !errors.As(err, &m) {
		return err
	}
	switch m.Number {
	case 1290, 1792, 1836, 1665: // read-only in three ways, and the session's binlog_format
		_ = s.Close() // the server's error says more
		return refusedError{m}
	}
	return err
}

// refusedError is a driver.ErrBadConn that says why. database/sql drops the connection, and repeats the statement on
// another one where that is safe.
type refusedError struct{ *mysql.MySQLError }

func (e refusedError) Unwrap() error { return e.MySQLError }

func (e refusedError) Is(target error) bool {
	return target == driver.ErrBadConn || e.MySQLError.Is(target)
}
