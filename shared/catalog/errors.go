package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/fault"
)

// class is what an error of the server means to us.
type class struct {
	kind  fault.Kind
	retry bool // the same transaction may well succeed when it runs again
	hint  string
}

var (
	away     = class{kind: fault.Unavailable}
	again    = class{kind: fault.Unavailable, retry: true}
	full     = class{kind: fault.Unavailable, hint: "make room on MySQL's disk"}
	schema   = class{kind: fault.Unavailable, hint: migrateHint}
	account  = class{kind: fault.Unavailable, hint: "check user, password and rights in TIERFLOW_MYSQL_DSN"}
	database = class{kind: fault.Unavailable, hint: "create the database, or correct its name in TIERFLOW_MYSQL_DSN"}
	taken    = class{kind: fault.Conflict}
	refused  = class{kind: fault.Unprocessable}
)

// classes of the servers' error numbers. What an operator can cure (rights, schema, disk) is Unavailable: the
// work waits for him and does not fail for good.
var classes = map[uint16]class{
	1213: again, // deadlock
	1205: again, // lock wait timeout
	1020: again, // MariaDB 11.6: the row has changed since the snapshot
	3101: again, // group replication rolled it back
	1053: again, // shutdown in progress
	1927: again, // MariaDB: connection killed
	4031: again, // MySQL: disconnected for inactivity
	1317: away,  // query interrupted
	3024: away,  // MySQL: maximum execution time
	1969: away,  // MariaDB: maximum statement time
	1040: away,  // too many connections
	1203: away,  // too many connections of this user
	1226: away,  // a limit of this user
	1129: away,  // host blocked
	1037: away,  // out of memory
	1041: away,  // out of memory
	1047: away,  // Galera: the node is not ready
	1290: away,  // read only
	1792: away,  // read-only transaction
	1836: away,  // read-only mode
	1021: full,
	1114: full, // table is full
	1146: schema,
	1054: schema, // unknown column
	1049: database,
	1044: account,
	1045: account,
	1130: account, // host not allowed
	1142: account,
	1143: account,
	1227: account,
	1698: account,

	1062: taken,
	1022: taken,
	1586: taken,
	1451: taken, // a parent row that is referred to
	1217: taken,

	1452: refused, // a child row without its parent
	1216: refused,
	3819: refused, // CHECK, MySQL
	4025: refused, // CHECK, MariaDB
	1264: refused, // out of range
	1690: refused, // out of range in an expression
	1406: refused, // too long
	1048: refused, // NULL
	1364: refused, // no default
	1366: refused, // not of this type, or not UTF-8
	1265: refused, // truncated
	1292: refused, // not a time
	1153: refused, // packet too large
}

// Kind says what an error of MySQL, its driver or database/sql means. A fault error keeps its kind, a missing
// row is fault.Unknown, and "" is nil's.
func Kind(err error) fault.Kind {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Kind
	}
	return classify(err).kind
}

// Retryable tells whether the whole transaction that returned err may be tried again at once: a deadlock, a lock
// wait, a lost connection. The last may have happened after a COMMIT: the transaction must tolerate that it was
// done already.
func Retryable(err error) bool { return classify(err).retry }

// Wrap makes a fault error of an error of MySQL, with its kind and, where an operator can do something, a hint.
// nil stays nil, and a fault error stays as it is.
func Wrap(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	c := classify(err)
	if c.kind == fault.Unknown {
		err = errNoRow // "sql: no rows in result set" says nothing to a user
	}
	return &fault.Error{Kind: c.kind, Op: op, Subject: subject, Hint: c.hint, Err: err}
}

func classify(err error) class {
	var m *mysql.MySQLError
	var n net.Error
	switch {
	case err == nil:
		return class{}
	case errors.As(err, &m):
		if c, ok := classes[m.Number]; ok {
			return c
		}
		return unnumbered(m)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return away
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn), errors.Is(err, mysql.ErrMalformPkt),
		errors.Is(err, mysql.ErrPktSync), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &n):
		return again
	case errors.Is(err, sql.ErrConnDone), errors.Is(err, sql.ErrTxDone):
		return away
	case errors.Is(err, sql.ErrNoRows):
		return class{kind: fault.Unknown}
	case errors.Is(err, mysql.ErrPktTooLarge):
		return refused
	}
	return class{kind: fault.Internal}
}

// unnumbered reads the words where a number says nothing: go-mysql-server has 1105, "unknown error", for most.
func unnumbered(m *mysql.MySQLError) class {
	if m.Number == 1105 {
		text := strings.ToLower(m.Message)
		for _, words := range []string{"check constraint", "too large for column", "too long for column", "out of range"} {
			if strings.Contains(text, words) {
				return refused
			}
		}
	}
	return class{kind: fault.Internal}
}

var errNoRow = errors.New("there is none")

func isMissing(err error) bool { return classify(err).hint == migrateHint }
