package catalog

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/tierflow/tierflow/shared/fault"
)

// The migrations are numbered and only go forward. MySQL commits at every CREATE, so an interrupted migration runs again
// from its start. Each statement must be harmless when it runs a second time.
//
//go:embed schema/*.sql
var schemaFiles embed.FS

// versionTable is where goose records which migrations it has applied.
const versionTable = "tierflow_schema"

// changeColumns are the columns of the table in which the api records a change of levels.
const changeColumns = "change_id, before_levels, after_cid, changed_at"

const migrateHint = "run `committer migrate`"

// Migrate applies the missing migrations and returns their file names, in order. Several processes may call it at once: one
// works and the others wait. The error says what to do where the server cannot take them.
func (c *Catalog) Migrate(ctx context.Context) ([]string, error) {
	cfg := c.cfg.Clone()
	cfg.ReadTimeout = 0 // the change of a big table may take any time
	db, err := open(cfg, 0)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	files, err := fs.Sub(schemaFiles, "schema")
	if err != nil {
		return nil, err
	}
	p, err := goose.NewProvider(goose.DialectMySQL, db, files, goose.WithTableName(versionTable),
		goose.WithSessionLocker(locker{lockName(cfg.DBName)}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, err
	}
	server, err := checkVersion(ctx, db)
	if err == nil {
		err = makeVersionTable(ctx, db)
	}
	if err != nil {
		return nil, explain(cfg.DBName, server, err)
	}
	results, err := p.Up(ctx)
	var partial *goose.PartialError
	if errors.As(err, &partial) {
		results = partial.Applied
		err = fmt.Errorf("%s: %w", path.Base(partial.Failed.Source.Path), partial.Err)
	}
	var applied []string
	for _, r := range results {
		applied = append(applied, path.Base(r.Source.Path))
	}
	return applied, explain(cfg.DBName, server, err)
}

// makeVersionTable creates goose's table before goose does. goose would create it without its lock and without naming an
// engine. It would also take two steps, and after a crash between them the second would never run.
func makeVersionTable(ctx context.Context, db *sql.DB) error {
	for _, statement := range []string{
		"CREATE TABLE IF NOT EXISTS " + versionTable + ` (
			id         BIGINT      NOT NULL AUTO_INCREMENT PRIMARY KEY,
			version_id BIGINT      NOT NULL UNIQUE,
			is_applied BOOLEAN     NOT NULL,
			tstamp     DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6))
		) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`,
		"INSERT IGNORE INTO " + versionTable + " (version_id, is_applied) VALUES (0, TRUE)",
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// CheckSchema returns nil when every migration has been applied and every table has its columns. Otherwise the error is
// fault.Unavailable, says what is missing, and hints at `committer migrate`.
func (c *Catalog) CheckSchema(ctx context.Context) error {
	const op = "check the schema of"
	missing := func(err error) error {
		return &fault.Error{Kind: fault.Unavailable, Op: op, Subject: c.cfg.DBName, Hint: migrateHint, Err: err}
	}
	for _, q := range []string{
		"SELECT content_level, " + levelColumns + " FROM `level` LIMIT 0",
		"SELECT " + rowColumns + " FROM contents LIMIT 0",
		"SELECT " + historyColumns + " FROM update_history LIMIT 0",
		"SELECT mode FROM policy LIMIT 0",
		"SELECT " + changeColumns + " FROM level_change LIMIT 0",
	} {
		if _, err := c.db.ExecContext(ctx, q); isMissing(err) {
			return missing(err)
		} else if err != nil {
			return Wrap(op, c.cfg.DBName, err)
		}
	}
	applied := map[string]bool{}
	rows, err := c.db.QueryContext(ctx, "SELECT version_id FROM "+versionTable+" WHERE is_applied")
	if isMissing(err) {
		return missing(err)
	}
	if err != nil {
		return Wrap(op, c.cfg.DBName, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v int64
		if err := rows.Scan(&v); err != nil {
			return Wrap(op, c.cfg.DBName, err)
		}
		applied[fmt.Sprintf("%05d", v)] = true
	}
	if err := rows.Err(); err != nil {
		return Wrap(op, c.cfg.DBName, err)
	}
	files, err := schemaFiles.ReadDir("schema")
	if err != nil {
		return err
	}
	var pending []string
	for _, f := range files {
		if number, _, _ := strings.Cut(f.Name(), "_"); !applied[number] {
			pending = append(pending, f.Name())
		}
	}
	if len(pending) > 0 {
		return missing(fmt.Errorf("not applied: %s", strings.Join(pending, ", ")))
	}
	return nil
}

// lockName returns the name of the lock of a database's migrations. Locks belong to the server, not to the database. A
// lock's name has at most 64 characters, and so has the name of a database alone: hence the digest.
func lockName(database string) string {
	return fmt.Sprintf("tierflow:migrate:%.16x", sha256.Sum256([]byte(database)))
}

// locker lets one migrator run at a time. goose has no locker for MySQL.
type locker struct{ name string }

// SessionLock waits for the lock until ctx ends.
func (l locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	for {
		// NULL means an error of the server. The wait is short because a server does not notice that a waiting client has
		// gone, and would give it the lock.
		var got sql.NullInt64
		if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, 5)", l.name).Scan(&got); err != nil {
			return err
		}
		if !got.Valid {
			return fmt.Errorf("GET_LOCK(%s) failed", l.name)
		}
		if got.Int64 == 1 {
			return nil
		}
	}
}

func (l locker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := conn.ExecContext(ctx, "SELECT RELEASE_LOCK(?)", l.name)
	return err
}
