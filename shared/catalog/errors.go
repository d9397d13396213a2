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
	large bool // a smaller transaction may succeed
	known bool // the server refuses everybody, whatever the rows
	hint  string
}

var (
	// other is every error that the table below does not name. It is the server's, not the row's: a state that nobody has
	// thought of must not cost an entry an attempt. The work waits, and the error says the server's own number and words.
	other = class{kind: fault.Unavailable}

	away     = class{kind: fault.Unavailable, known: true}
	again    = class{kind: fault.Unavailable, known: true, retry: true}
	readOnly = class{kind: fault.Unavailable, known: true, retry: true, hint: "make MySQL writable, or give the primary in TIERFLOW_MYSQL_DSN"}
	format   = class{kind: fault.Unavailable, known: true, retry: true, hint: "set binlog_format=ROW"}
	plugin   = class{kind: fault.Unavailable, known: true, hint: "see MySQL's error log: a replication plugin refuses writes"}
	full     = class{kind: fault.Unavailable, known: true, hint: "make room on MySQL's disk"}
	large    = class{kind: fault.Unavailable, large: true, hint: "raise the server's limit for one packet or transaction"}
	schema   = class{kind: fault.Unavailable, known: true, hint: migrateHint}
	column   = class{kind: fault.Unavailable, known: true, hint: "give the column a default: Tierflow does not know it"}
	account  = class{kind: fault.Unavailable, known: true, hint: "check user, password and rights in TIERFLOW_MYSQL_DSN"}
	database = class{kind: fault.Unavailable, known: true, hint: "create the database, or correct its name in TIERFLOW_MYSQL_DSN"}
	taken    = class{kind: fault.Conflict}
	refused  = class{kind: fault.Unprocessable}
)

// classes of the servers' error numbers. Only what is known to be a row's own fault (taken, refused) fails an entry.
// Everything else is Unavailable, whether it is listed or not: the work waits until the server takes it. The lists of
// numbers are https://dev.mysql.com/doc/mysql-errors/8.4/en/ and https://mariadb.com/kb/en/mariadb-error-codes/.
var classes = map[uint16]class{
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
	1366: refused, // not of this type, or not UTF-8
	1265: refused, // truncated
	1292: refused, // not a time

	1213: again, // deadlock
	1205: again, // lock wait timeout
	1020: again, // MariaDB 11.6: the row has changed since the snapshot
	3101: again, // group replication rolled it back
	1053: again, // shutdown in progress
	1927: again, // MariaDB: connection killed
	4031: again, // MySQL: disconnected for inactivity

	1317: away, // query interrupted
	3024: away, // MySQL: maximum execution time
	1969: away, // MariaDB: maximum statement time
	1040: away, // too many connections
	1203: away, // too many connections of this user
	1226: away, // a limit of this user
	1129: away, // host blocked
	1037: away, // out of memory
	1041: away, // out of memory
	1047: away, // Galera: the node is not ready
	3032: away, // MySQL: offline mode

	1290: readOnly, // read_only, super_read_only and others
	1792: readOnly, // read-only transaction
	1836: readOnly, // read-only mode
	1015: readOnly, // MySQL: cannot lock a file; innodb_read_only says so
	1036: readOnly, // the table is read-only

	1665: format, // binlog_format=STATEMENT refuses READ COMMITTED
	3098: plugin, // a table without what group replication needs
	3100: plugin, // a replication hook failed
	1026: full,   // error writing a file
	1021: full,
	1114: full, // table is full, a temporary one as well

	1153: large, // packet too large
	1197: large, // max_binlog_cache_size
	1206: large, // the lock table is full

	1146: schema,
	1054: schema, // unknown column
	1364: column, // no default: our statements name every column of the schema that needs a value

	1049: database,
	1044: account,
	1045: account,
	1130: account, // host not allowed
	1142: account,
	1143: account,
	1227: account,
	1698: account,
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

// Divisible tells whether a part of the transaction that returned err may succeed where the whole did not: it was too large
// for the server, or the number is not known, and may concern a single row.
func Divisible(err error) bool {
	c := classify(err)
	return c.large || c.kind == fault.Unavailable && !c.known
}

// IsLocked tells whether err is that of a statement that has waited too long for a lock of another transaction.
func IsLocked(err error) bool {
	var m *mysql.MySQLError
	return errors.As(err, &m) && m.Number == 1205
}

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

// classify finds an error's class. What it does not know is Internal, and counts attempts: those errors come neither from
// the server nor from the connection to it. A value that Scan cannot read is one. Only the row's own entries fail for it,
// and waiting would not mend it.
func classify(err error) class {
	var m *mysql.MySQLError
	var n net.Error
	var c connectError
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
		errors.Is(err, mysql.ErrPktSync), errors.Is(err, mysql.ErrPktSyncMul), errors.Is(err, mysql.ErrBusyBuffer),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &n):
		return again
	case errors.As(err, &c), errors.Is(err, sql.ErrConnDone), errors.Is(err, sql.ErrTxDone):
		return away
	case errors.Is(err, sql.ErrNoRows):
		return class{kind: fault.Unknown}
	case errors.Is(err, mysql.ErrPktTooLarge):
		return large
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
	return other
}

var errNoRow = errors.New("there is none")

func isMissing(err error) bool { return classify(err).hint == migrateHint }
