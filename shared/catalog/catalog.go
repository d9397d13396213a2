// Package catalog is MySQL as Tierflow uses it: the connection's settings, the schema, reads, and the classes of
// errors. MySQL always names the place where a content's file is. Writes belong to the services. Its importers
// are all three services and the programs under scripts.
//
// It runs on MySQL 8.0 and MariaDB 10.11, and later ones; on go-mysql-server well enough for a demonstration.
package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Catalog reads one database. All its errors are fault errors; those of a server that is away or not set up yet
// are fault.Unavailable.
type Catalog struct {
	db  *sql.DB
	cfg *mysql.Config
}

// IdleSession is how long a session may be idle before the server ends it and rolls back its transaction (wait_timeout). A
// process that is stopped or cut off inside a transaction holds its row locks no longer than this.
const IdleSession = 30 * time.Second

// Options of Open; the zero value is good.
type Options struct {
	MaxConns int // connections at most; 16 by default
}

// Open reads the DSN (https://github.com/go-sql-driver/mysql#dsn-data-source-name), which needs no parameters
// but must name a database. It does not connect: the server may come later.
func Open(dsn string, o Options) (*Catalog, error) {
	cfg, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	db, err := open(cfg)
	if err != nil {
		return nil, err
	}
	conns := o.MaxConns
	if conns == 0 {
		conns = 16
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(IdleSession / 2)
	db.SetConnMaxLifetime(5 * time.Minute) // below what servers and load balancers between allow
	return &Catalog{db, cfg}, nil
}

// parse sets everything that Tierflow relies on, whatever the DSN says, but for the isolation level: see connector.
func parse(dsn string) (*mysql.Config, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("MySQL DSN: %w", err)
	}
	if cfg.DBName == "" {
		return nil, errors.New("MySQL DSN: it names no database: user:password@tcp(host:3306)/tierflow does")
	}
	if err := cfg.Apply(mysql.Charset("utf8mb4", "utf8mb4_bin")); err != nil {
		return nil, fmt.Errorf("MySQL DSN: %w", err)
	}
	cfg.ParseTime = true
	cfg.Loc = time.UTC
	cfg.InterpolateParams = true // saves a round trip for each statement
	cfg.ClientFoundRows = true   // rows affected are rows found, even if they were so already
	cfg.RejectReadOnly = true    // after a failover, look for the new primary
	cfg.MultiStatements = false
	cfg.Timeout = 2 * time.Second
	cfg.ReadTimeout = time.Minute // longer than InnoDB waits for a lock
	cfg.WriteTimeout = time.Minute
	cfg.Logger = &mysql.NopLogger{} // what it would log is in the errors as well
	if cfg.Params == nil {
		cfg.Params = map[string]string{}
	}
	cfg.Params["wait_timeout"] = strconv.Itoa(int(IdleSession.Seconds()))
	cfg.Params["time_zone"] = "'+00:00'"
	cfg.Params["sql_mode"] = "CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_ALL_TABLES')"
	return cfg, nil
}

func open(cfg *mysql.Config) (*sql.DB, error) {
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("MySQL DSN: %w", err)
	}
	return sql.OpenDB(connector{c}), nil
}

// connector makes sessions with the isolation level that all of Tierflow's transactions want. To ask for it in each would be
// a trip more; the servers do not share a name of a variable that a DSN could set.
type connector struct{ driver.Connector }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = conn.(driver.ExecerContext).ExecContext(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", nil)
	if err != nil {
		_ = conn.Close() // what was wrong, the statement has said
		return nil, err
	}
	return conn, nil
}

// DB is the pool, for the services' writes. Its sessions are strict, in UTC and utf8mb4, and report the rows an
// UPDATE found as affected; each statement of a transaction sees what was committed when it began (READ COMMITTED).
func (c *Catalog) DB() *sql.DB { return c.db }

// Close closes the pool.
func (c *Catalog) Close() error { return c.db.Close() }

// Ping tells whether the server answers and lets us into the database.
func (c *Catalog) Ping(ctx context.Context) error {
	return Wrap("reach", "MySQL at "+c.cfg.Addr, c.db.PingContext(ctx))
}
