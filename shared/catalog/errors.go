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

// class is what an error of the server means to Tierflow.
type class struct {
	kind  fault.Kind
	retry bool // the same transaction may succeed when it runs again
	large bool // a smaller transaction may succeed
	known bool // the server refuses all clients, whatever the rows are
	hint  string
}

var (
	// other is the class of every error that the table below does not list. Such an error counts as the server's and not
	// the row's: an unknown condition must not cost an entry an attempt. The work waits, and the error has the server's own
	// number and text.
	other = class{kind: fault.Unavailable}

	away     = class{kind: fault.Unavailable, known: true}
	again    = class{kind: fault.Unavailable, known: true, retry: true}
	readOnly = class{kind: fault.Unavailable, known: true, retry: true, hint: "make MySQL writable, or give the primary in TIERFLOW_MYSQL_DSN"}
	format   = class{kind: fault.Unavailable, known: true, retry: true, hint: "set binlog_format=ROW"}
	plugin   = class{kind: fault.Unavailable, known: true, hint: "see MySQL's error log: a replication plugin refuses writes"}
	full     = class{kind: fault.Unavailable, known: true, hint: "make room on MySQL's disks, also for its temporary files"}
	large    = class{kind: fault.Unavailable, large: true, hint: "raise the server's limit for one packet or transaction"}
	schema   = class{kind: fault.Unavailable, known: true, hint: migrateHint}
	column   = class{kind: fault.Unavailable, known: true, hint: "give the column a default: Tierflow does not know it"}
	account  = class{kind: fault.Unavailable, known: true, hint: "check user, password and rights in TIERFLOW_MYSQL_DSN"}
	database = class{kind: fault.Unavailable, known: true, hint: "create the database, or correct its name in TIERFLOW_MYSQL_DSN"}
	taken    = class{kind: fault.Conflict}
	refused  = class{kind: fault.Unprocessable}
)

// classes maps the servers' error numbers to classes. Only errors that are known to be caused by the row (taken, refused)
// fail an entry. All others are Unavailable, listed or not: the work waits until the server accepts it. The numbers are
// listed at https://dev.mysql.com/doc/mysql-errors/8.4/en/ and https://mariadb.com/kb/en/mariadb-error-codes/.
var classes = map[uint16]class{
	1062: taken,
	1022: taken,
	1586: taken,
	1451: taken, // a row that others refer to
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
	1292: refused, // not a valid time

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
	3:    full,   // error writing a temporary file
	20:   full,   // disk full writing a temporary file
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

// Kind says what an error of MySQL, of its driver or of database/sql means. A fault error keeps its kind. A missing row is
// fault.Unknown. For nil, Kind returns "".
func Kind(err error) fault.Kind {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Kind
	}
	return classify(err).kind
}

// Retryable reports whether the whole transaction that returned err may run again at once: after a deadlock, a lock wait or
// a lost connection. The connection may have been lost after a COMMIT, so the transaction must tolerate that it was
// committed already.
func Retryable(err error) bool { return classify(err).retry }

// Divisible reports whether a part of the transaction that returned err may succeed where the whole did not. This is so
// where the transaction was too large for the server. It may be so where the error's number is unknown, because that error
// may concern a single row.
func Divisible(err error) bool {
	c := classify(err)
	return c.large || c.kind == fault.Unavailable && !c.known
}

// IsLocked reports whether err comes from a statement that waited too long for a lock of another transaction.
func IsLocked(err error) bool {
	var m *mysql.MySQLError
	return errors.As(err, &m) && m.Number == 1205
}

// Wrap turns an error of MySQL into a fault error with its kind and, where an operator can do something, a hint. It returns
// nil and fault errors unchanged.
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

// classify finds an error's class. Errors that it does not know are Internal and count attempts: they come neither from the
// server nor from the connection to it. One example is a value that Scan cannot read. Only the entries of that row fail,
// and waiting would not help.
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

// unnumbered reads the error's text where its number says nothing: go-mysql-server has 1105, "unknown error", for most.
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
