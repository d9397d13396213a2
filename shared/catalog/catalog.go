// Package catalog is Tierflow's access to MySQL: the settings of a connection, the schema, the reads by table, and the
// classes of errors. Only MySQL says where an item's file is.
//
// Writes are parts of a service's transactions, and their statements stand in the service. What they lock and check in the
// same transaction is that service's protocol. This table says who writes what:
//
//	contents         api        INSERT, DELETE, UPDATE (pinned_level, pinned_until, review_at)
//	contents         relocator  UPDATE (generation, view_count, count_entry, review_at)
//	contents         committer  UPDATE (content_level, update_time, generation, view_count, size_bytes, digest, count_entry)
//	contents         owner      INSERT
//	level            api        INSERT, DELETE, UPDATE (min_counts, max_counts, path, demote_counts, min_residency, state)
//	policy           api        INSERT, UPDATE (mode)
//	level            owner      UPDATE (tier_id)
//	update_history   committer  INSERT, UPDATE
//	level_change     api        INSERT, DELETE, UPDATE
//	tierflow_schema  owner      INSERT
//
// UPDATE without columns means all columns: no other service writes that table. The owner is the account of `committer migrate`,
// `relocator init-tiers` and `relocator import`. The statements are in api/internal/registry, in the relocator's packages
// (release, counts, init-tiers, importer) and in committer/internal/apply. A house test compares this table with the statements
// in the sources and with the accounts that compose/mysql/accounts makes.
//
// It runs on MySQL 8.0, MariaDB 10.11 and later versions of both. On go-mysql-server it runs well enough for a
// demonstration.
package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Catalog reads one database. All its errors are fault errors. They are fault.Unavailable where the server is away or has no
// schema yet.
type Catalog struct {
	db  *sql.DB
	cfg *mysql.Config
}

// IdleSession is how long a session may be idle before the server ends it and rolls back its transaction (wait_timeout). A
// process that is stopped or cut off inside a transaction holds its row locks no longer than this.
const IdleSession = 30 * time.Second

// Options of Open. The zero value is valid.
type Options struct {
	MaxConns int           // max connections of the pool; 16 by default
	LockWait time.Duration // how long a statement waits for a row lock, in whole seconds; the server's default for 0
}

// Open parses the DSN (https://github.com/go-sql-driver/mysql#dsn-data-source-name). The DSN must name a database and needs no
// parameters. Open does not connect: the server may start later.
func Open(dsn string, o Options) (*Catalog, error) {
	cfg, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	db, err := open(cfg, o.LockWait)
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
	db.SetConnMaxLifetime(5 * time.Minute) // shorter than the limits of servers and load balancers
	return &Catalog{db, cfg}, nil
}

// parse sets everything that Tierflow relies on, whatever the DSN says. connector sets the isolation level.
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
	cfg.InterpolateParams = true // one round trip less for each statement
	cfg.ClientFoundRows = true   // RowsAffected counts the rows found, changed or not
	cfg.RejectReadOnly = false   // session does it and keeps the text of the server's error
	cfg.MultiStatements = false
	cfg.Timeout = 2 * time.Second
	cfg.ReadTimeout = time.Minute // longer than InnoDB waits for a lock
	cfg.WriteTimeout = time.Minute
	cfg.Logger = &mysql.NopLogger{} // the errors contain what it would log
	if cfg.Params == nil {
		cfg.Params = map[string]string{}
	}
	cfg.Params["wait_timeout"] = strconv.Itoa(int(IdleSession.Seconds()))
	cfg.Params["time_zone"] = "'+00:00'"
	cfg.Params["sql_mode"] = "CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_ALL_TABLES')"
	return cfg, nil
}

func open(cfg *mysql.Config, lockWait time.Duration) (*sql.DB, error) {
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("MySQL DSN: %w", err)
	}
	return sql.OpenDB(connector{c, lockWait}), nil
}

// DB is the pool, for the services' writes. Its sessions are strict, in UTC and utf8mb4. RowsAffected of an UPDATE counts the rows
// found. Each statement of a transaction sees what was committed when the statement began (READ COMMITTED).
func (c *Catalog) DB() *sql.DB { return c.db }

// Close closes the pool.
func (c *Catalog) Close() error { return c.db.Close() }

// Ping returns nil where the server answers and gives access to the database.
func (c *Catalog) Ping(ctx context.Context) error {
	return Wrap("reach", "MySQL at "+c.cfg.Addr, c.db.PingContext(ctx))
}
