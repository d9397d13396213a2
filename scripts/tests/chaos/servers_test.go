package chaos_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const (
	// account is the services' own in MySQL: it may not write where only an administrator may.
	account = "'tierflow'@'127.0.0.1'"
	// crowd is an account that takes connections away.
	crowd = "'crowd'@'127.0.0.1'"
)

// serviceDSN is the DSN of the services.
func (w *world) serviceDSN() string { return as("tierflow", w.mysql.DSN("chaos")) }

func as(user, dsn string) string { return strings.Replace(dsn, "root@", user+"@", 1) }

// refusals are states of a MySQL that refuses writes, with the statement that begins each. MariaDB has not all of them.
var refusals = []string{
	"SET GLOBAL read_only = ON",
	"SET GLOBAL super_read_only = ON",
	"SET GLOBAL offline_mode = ON",
	"ALTER USER " + account + " ACCOUNT LOCK",
}

// allowWrites ends all refusals.
func (w *world) allowWrites(ctx context.Context) error {
	return w.asRoot(ctx, func(root *sql.Conn) error { return allowWrites(ctx, root) })
}

func allowWrites(ctx context.Context, root *sql.Conn) (err error) {
	for _, statement := range []string{"SET GLOBAL super_read_only = OFF", "SET GLOBAL read_only = OFF", "SET GLOBAL offline_mode = OFF",
		"ALTER USER " + account + " ACCOUNT UNLOCK", "SET GLOBAL max_connections = 500"} {
		if _, e := root.ExecContext(ctx, statement); !unknownVariable(e) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func unknownVariable(err error) bool {
	var e *mysql.MySQLError
	return errors.As(err, &e) && e.Number == 1193
}

// asRoot gives do a connection of root's that lasts, also while nobody gets a new one.
func (w *world) asRoot(ctx context.Context, do func(*sql.Conn) error) error {
	db, err := sql.Open("mysql", w.mysql.DSN(""))
	if err != nil {
		return err
	}
	defer db.Close()
	root, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

// endSessions ends all connections to the services' database, and those of the services.
func (w *world) endSessions(ctx context.Context, root *sql.Conn) error {
	rows, err := root.QueryContext(ctx, "SELECT id FROM information_schema.processlist WHERE db = 'chaos' AND id <> CONNECTION_ID()")
	if err != nil {
		return err
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		_, _ = root.ExecContext(ctx, fmt.Sprintf("KILL %d", id)) // fails where the connection has ended by itself
	}
	return rows.Err()
}

// refusing are the faults of a MySQL that answers and does not do what it is asked.
var refusing = []fault{
	{"MySQL refuses writes", theMySQL, false, func(ctx context.Context, w *world, r *rand.Rand) error {
		return w.asRoot(ctx, func(root *sql.Conn) error {
			statement := refusals[r.IntN(len(refusals))]
			_, err := root.ExecContext(ctx, statement)
			if unknownVariable(err) {
				statement = refusals[0]
				_, err = root.ExecContext(ctx, statement)
			}
			w.note("%s", statement)
			if err == nil && r.IntN(2) == 0 {
				err = w.endSessions(ctx, root)
			}
			if err == nil {
				last(r, 3*time.Second)
			}
			w.note("MySQL accepts writes")
			return errors.Join(err, allowWrites(ctx, root))
		})
	}},
	{"MySQL has no connection left", theMySQL, false, func(ctx context.Context, w *world, r *rand.Rand) error {
		w.note("take MySQL's connections")
		return w.asRoot(ctx, func(root *sql.Conn) error {
			others, err := sql.Open("mysql", as("crowd", w.mysql.DSN("")))
			if err != nil {
				return err
			}
			defer others.Close()
			if _, err = root.ExecContext(ctx, "SET GLOBAL max_connections = 10"); err == nil {
				err = w.endSessions(ctx, root)
			}
			for taken := 0; err == nil && taken < 10; taken++ {
				_, err = others.Conn(ctx)
			}
			var refused *mysql.MySQLError
			if errors.As(err, &refused) && refused.Number == 1040 { // Too many connections
				err = nil
			}
			if err == nil {
				last(r, 3*time.Second)
			}
			w.note("MySQL has connections again")
			return errors.Join(err, allowWrites(ctx, root))
		})
	}},
	{"rows are locked by somebody else", theMySQL, false, func(ctx context.Context, w *world, r *rand.Rand) error {
		statement := []string{
			"UPDATE contents SET view_count = view_count WHERE cid % 2 = 0",
			fmt.Sprintf("SELECT * FROM contents WHERE cid = %d FOR UPDATE", 1+r.IntN(12)),
			"SELECT * FROM contents WHERE content_level = 'silver' FOR UPDATE",
			"UPDATE `level` SET path = CONCAT(path, '/elsewhere') WHERE content_level = 'gold'",
		}[r.IntN(4)]
		w.note("lock rows: %s", statement)
		tx, err := w.DB().BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
		last(r, 3*minIdle)
		return nil
	}},
}

// configure sets a parameter of a Redis, whether it is behind gates or not.
func configure(ctx context.Context, r *localserver.Redis, name, value string) error {
	_, err := on(r, func(c *redis.Client) (string, error) { return c.ConfigSet(ctx, name, value).Result() })
	return err
}

// full has one master, or all, at the limit of its memory.
var full = fault{"Redis is at its maxmemory", theRedis, false, func(ctx context.Context, w *world, r *rand.Rand) (err error) {
	hit := w.redis.masters()
	if r.IntN(2) == 0 {
		hit = hit[:1]
	}
	for _, one := range hit {
		w.note("maxmemory of %s", one.Addr())
		err = errors.Join(err, configure(ctx, one, "maxmemory", "1"))
	}
	if err == nil {
		last(r, 3*time.Second)
	}
	for _, one := range hit {
		err = errors.Join(err, configure(ctx, one, "maxmemory", "0"))
	}
	w.note("no maxmemory")
	return err
}}

// clocked is the program of a Redis whose clock can be set; "" where this machine cannot make it.
var clocked = sync.OnceValue(func() string {
	program, err := testserver.ClockRedisProgram(programsDir)
	if err != nil {
		leaveOut("faults of Redis' clock: " + err.Error())
	}
	return program
})

// clocks are the faults of a Redis' clock.
func clocks() []fault {
	if clocked() == "" {
		return nil
	}
	return []fault{{"the clock of a Redis is set", theRedis, false, func(_ context.Context, w *world, r *rand.Rand) error {
		all := w.redis.servers()
		one := all[r.IntN(len(all))]
		by := time.Duration(r.IntN(31)-15) * time.Second
		if r.IntN(4) == 0 {
			by *= 240 // up to an hour
		}
		w.note("set the clock of %s by %v", one.Addr(), by)
		if err := testserver.SetClock(one, by); err != nil {
			return err
		}
		last(r, 3*time.Second)
		w.note("set it back")
		return testserver.SetClock(one, 0)
	}}}
}
