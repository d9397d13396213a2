package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/testenv/child"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// server is the Redis or the MySQL of a run.
type server struct {
	address string // Redis: its URL; MySQL: its DSN
	about   string // one line for the user
	note    string // a second line; "" for none
	// release restores a given server as it was, or stops a private one.
	release func(ctx context.Context) error
}

// startRedis takes the given Redis, or starts a private one. If it returns nil without an error, the run needs the embedded
// one; why is the reason, "" if the user has chosen it.
func (q *quickstart) startRedis(ctx context.Context) (s *server, why string, err error) {
	if q.RedisURL != "" {
		version, err := redisVersion(ctx, q.RedisURL)
		if err != nil {
			return nil, "", fmt.Errorf("--redis-url: %w", err)
		}
		q.prefix = "tierflow-quickstart-" + strings.ToLower(rand.Text()[:6]) + ":"
		return &server{address: q.RedisURL, about: "Redis " + version + ", the given one",
			note: "keys begin with " + q.prefix + " and are deleted at the end", release: q.deleteKeys}, "", nil
	}
	if q.Embedded {
		return nil, "", nil
	}
	binary, err := localserver.FindRedis()
	if err != nil {
		return nil, "there is no redis-server here", nil
	}
	r, err := localserver.StartRedis(ctx, localserver.Options{Dir: filepath.Join(q.dir, "redis")})
	if err != nil {
		return nil, fmt.Sprintf("%s does not start: %v", binary, firstLine(err)), ctx.Err()
	}
	version, err := redisVersion(ctx, r.URL())
	if err != nil {
		return nil, firstLine(err), errors.Join(r.Close(), ctx.Err())
	}
	return &server{address: r.URL(), about: fmt.Sprintf("Redis %s, %s, private, on %s", version, binary, r.Addr()),
		release: func(context.Context) error { return r.Close() }}, "", nil
}

// startMySQL is startRedis for MySQL.
func (q *quickstart) startMySQL(ctx context.Context) (s *server, why string, err error) {
	if q.MySQLDSN != "" {
		s, err := claimDatabase(ctx, q.MySQLDSN)
		if err != nil {
			err = fmt.Errorf("--mysql-dsn: %w", err)
		}
		return s, "", err
	}
	if q.Embedded {
		return nil, "", nil
	}
	binary, err := localserver.FindMySQL()
	if err != nil {
		return nil, "there is neither mysqld nor mariadbd here", nil
	}
	m, err := localserver.StartMySQL(ctx, localserver.Options{Dir: filepath.Join(q.dir, "mysql")})
	if err != nil {
		return nil, fmt.Sprintf("%s does not start: %v", binary, firstLine(err)), ctx.Err()
	}
	version, err := mysqlVersion(ctx, m.DSN(""))
	if err == nil {
		err = execute(ctx, m.DSN(""), "CREATE DATABASE tierflow")
	}
	if err != nil {
		return nil, firstLine(err), errors.Join(m.Close(), ctx.Err())
	}
	return &server{address: m.DSN("tierflow"), about: fmt.Sprintf("%s, %s, private, on %s", version, binary, m.Addr()),
		release: func(context.Context) error { return m.Close() }}, "", nil
}

// startEmbedded builds and starts the embedded servers, both in one process.
func (q *quickstart) startEmbedded(ctx context.Context) (redis, mysql *server, err error) {
	err = stack.Build(ctx, stack.BuildOptions{Root: q.root, Cache: q.cache, Dir: q.dir, Module: "scripts/embedded", Packages: []string{"."}})
	if err != nil {
		return nil, nil, err
	}
	// The servers end when their standard input is closed. This process holds the other end until it ends.
	stdin, hold, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	ready, stdout, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	p := child.New(child.Options{
		Name: "the embedded servers",
		Log:  filepath.Join(q.dir, "embedded.log"),
		Command: func() *exec.Cmd {
			cmd := exec.Command(filepath.Join(q.dir, "embedded"))
			cmd.Stdin, cmd.Stdout = stdin, stdout
			return cmd
		},
	})
	stop := sync.OnceValue(func() error { return errors.Join(p.Stop(), hold.Close(), ready.Close()) })
	release := func(context.Context) error { return stop() }
	err = p.Launch()
	stdin.Close()
	stdout.Close() // now only the servers have it open, so the read ends when they end
	if err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = p.Kill() })()
	var answer struct {
		RedisURL string `json:"redis_url"`
		MySQLDSN string `json:"mysql_dsn"`
		Notice   string `json:"notice"`
	}
	if err := json.NewDecoder(ready).Decode(&answer); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("the embedded servers do not start: %w\n%s", err, p.Log()), stop())
	}
	redis = &server{address: answer.RedisURL, about: "embedded (miniredis): " + answer.Notice, release: release}
	mysql = &server{address: answer.MySQLDSN, about: "embedded (go-mysql-server): " + answer.Notice, release: release}
	return redis, mysql, nil
}

// claimDatabase makes a database for this run, or takes an empty one. Its release undoes that.
func claimDatabase(ctx context.Context, dsn string) (*server, error) {
	version, err := mysqlVersion(ctx, dsn)
	if err != nil {
		return nil, err
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	about := version + ", the given one"
	if cfg.DBName == "" {
		name := "tierflow_quickstart_" + strings.ToLower(rand.Text()[:6])
		if err := execute(ctx, dsn, "CREATE DATABASE "+name); err != nil {
			return nil, err
		}
		cfg.DBName = name
		return &server{address: cfg.FormatDSN(), about: about, note: "database " + name + ", which is dropped at the end",
			release: func(ctx context.Context) error { return execute(ctx, dsn, "DROP DATABASE "+name) }}, nil
	}
	tables, err := tables(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if len(tables) > 0 {
		return nil, fmt.Errorf("database %s is not empty (it has %s): name an empty one, or none, and one is made and dropped",
			cfg.DBName, strings.Join(tables, ", "))
	}
	return &server{address: dsn, about: about, note: "database " + cfg.DBName + ", whose tables are dropped at the end",
		release: func(ctx context.Context) error { return dropTables(ctx, dsn) }}, nil
}

// dropTables drops all tables of a database that was empty before this run.
func dropTables(ctx context.Context, dsn string) error {
	names, err := tables(ctx, dsn)
	if err != nil || len(names) == 0 {
		return err
	}
	db, err := open(dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx) // the next setting is of one session
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET FOREIGN_KEY_CHECKS = 0"); err != nil { // tables that refer to others go in any order
		return err
	}
	_, err = conn.ExecContext(ctx, "DROP TABLE `"+strings.Join(names, "`, `")+"`")
	return err
}

// deleteKeys deletes the keys that this run has made in a given Redis.
func (q *quickstart) deleteKeys(ctx context.Context) error {
	c, err := state.Connect(q.RedisURL, 3)
	if err != nil {
		return err
	}
	defer c.Close()
	keys := c.Scan(ctx, 0, q.prefix+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if err := c.Unlink(ctx, keys.Val()).Err(); err != nil {
			return err
		}
	}
	return keys.Err()
}

// redisVersion returns a version such as "7.0.15". A Redis that is too old is an error.
func redisVersion(ctx context.Context, address string) (string, error) {
	c, err := state.Connect(address, -1)
	if err != nil {
		return "", err
	}
	defer c.Close()
	info, err := c.Info(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	_, version, _ := strings.Cut(info, "redis_version:")
	version, _, _ = strings.Cut(version, "\r\n")
	if !isVersion(version, 7, 0) {
		return "", fmt.Errorf("Redis %s is too old: 7.0 or later is needed", version)
	}
	return version, nil
}

// mysqlVersion returns a name such as "MySQL 9.7.4" or "MariaDB 10.11.14". A server that is too old is an error.
func mysqlVersion(ctx context.Context, dsn string) (string, error) {
	db, err := open(dsn)
	if err != nil {
		return "", err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var full string
	if err := db.QueryRowContext(ctx, "SELECT VERSION()").Scan(&full); err != nil {
		return "", err
	}
	return catalog.Version(full)
}

var numbers = regexp.MustCompile(`^(\d+)\.(\d+)`)

// isVersion reports whether a version, such as 10.11.14, is major.minor or later.
func isVersion(version string, major, minor int) bool {
	m := numbers.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	a, _ := strconv.Atoi(m[1])
	b, _ := strconv.Atoi(m[2])
	return a > major || a == major && b >= minor
}

// open keeps the driver from logging errors, because it returns them.
func open(dsn string) (*sql.DB, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func tables(ctx context.Context, dsn string) (names []string, err error) {
	db, err := open(dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SHOW TABLES")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

func execute(ctx context.Context, dsn, statement string) error {
	db, err := open(dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// redisCommand returns a redis-cli command line for the server. It leaves out a password that the user chose.
func redisCommand(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	if u.Host == "127.0.0.1:"+u.Port() && u.User == nil && u.Path == "/0" {
		return "redis-cli -p " + u.Port()
	}
	ask := ""
	if _, ok := u.User.Password(); ok {
		u.User = url.User(u.User.Username())
		ask = " --askpass"
	}
	return "redis-cli -u " + u.String() + ask
}

// mysqlCommand returns a command line of a MySQL client for the server. It leaves out a password that the user chose.
func mysqlCommand(dsn string) string {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return ""
	}
	client := "mysql"
	if _, err := exec.LookPath("mariadb"); err == nil {
		client = "mariadb" // works with every server; MySQL's own client cannot log in to the embedded one
	}
	where := "-S " + cfg.Addr
	if host, port, err := net.SplitHostPort(cfg.Addr); err == nil {
		where = "-h " + host + " -P " + port
	}
	command := fmt.Sprintf("%s %s -u %s", client, where, cfg.User)
	switch {
	case cfg.Passwd == "tierflow":
		command += " -ptierflow"
	case cfg.Passwd != "":
		command += " -p"
	}
	return command + " " + cfg.DBName
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
