// Command baseline serves what ./scripts/bench compares the api with:
//
//	baseline ADDRESS MYSQL-DSN REDIS-ADDRESS
//
// /echo parses the same form as /post_sentence and answers the same bytes from memory: no HTTP service on echo does
// less. /original does what the system that Tierflow replaces did, in the simplest way. For every post it looks up
// the item and its target in MySQL, and then stores the state in Redis.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	_ "github.com/go-sql-driver/mysql" // the driver for sql.Open
	"github.com/labstack/echo/v4"
	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/process"
)

func main() {
	const usage = "usage: baseline ADDRESS MYSQL-DSN REDIS-ADDRESS"
	if len(os.Args) == 2 && (os.Args[1] == "-h" || os.Args[1] == "--help") {
		fmt.Println(usage)
		return
	}
	if len(os.Args) != 4 {
		fmt.Fprintf(os.Stderr, "baseline: unknown arguments %q\n%s\n", os.Args[1:], usage)
		os.Exit(process.Settings)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "baseline:", err)
		os.Exit(process.Failed)
	}
}

func serve(addr, dsn, redisAddr string) error {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	db.SetMaxIdleConns(64)
	db.SetMaxOpenConns(64)
	memory, err := readAll(db)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	e := echo.New()
	e.GET("/", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
	e.POST("/echo", func(c echo.Context) error { return fromMemory(c, memory) })
	e.POST("/original", func(c echo.Context) error { return original(c, db, rdb) })
	return (&http.Server{Addr: addr, Handler: e}).ListenAndServe()
}

type row struct{ level, filename string }

func readAll(db *sql.DB) (map[string]row, error) {
	rows, err := db.QueryContext(context.Background(), "SELECT cid, content_level, filename FROM contents")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]row{}
	for rows.Next() {
		var cid string
		var r row
		if err := rows.Scan(&cid, &r.level, &r.filename); err != nil {
			return nil, err
		}
		all[cid] = r
	}
	return all, rows.Err()
}

func fromMemory(c echo.Context, memory map[string]row) error {
	cid, count := c.FormValue("cid"), c.FormValue("count")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return echo.ErrBadRequest
	}
	r, ok := memory[cid]
	if !ok {
		return echo.ErrNotFound
	}
	target := "bronze"
	switch {
	case n >= 2000:
		target = "gold"
	case n >= 1000:
		target = "silver"
	}
	return c.Blob(http.StatusOK, "application/json", answer(cid, count, target, r))
}

func original(c echo.Context, db *sql.DB, rdb *redis.Client) error {
	ctx := c.Request().Context()
	cid, count := c.FormValue("cid"), c.FormValue("count")
	var r row
	err := db.QueryRowContext(ctx, "SELECT content_level, filename FROM contents WHERE cid = ?", cid).Scan(&r.level, &r.filename)
	if errors.Is(err, sql.ErrNoRows) {
		return echo.ErrNotFound
	}
	if err != nil {
		return err
	}
	var target string
	err = db.QueryRowContext(ctx, "SELECT content_level FROM `level` WHERE min_counts <= ? AND (max_counts >= ? OR max_counts IS NULL)",
		count, count).Scan(&target)
	if err != nil {
		return err
	}
	b := answer(cid, count, target, r)
	if err := rdb.Set(ctx, "original:"+cid, b, 0).Err(); err != nil {
		return err
	}
	return c.Blob(http.StatusOK, "application/json", b)
}

func answer(cid, count, target string, r row) []byte {
	status := "update"
	if target == r.level {
		status = "done"
	}
	b := make([]byte, 0, 256)
	b = append(b, `{"cid": "`...)
	b = append(b, cid...)
	b = append(b, `", "count": "`...)
	b = append(b, count...)
	b = append(b, `", "target": "`...)
	b = append(b, target...)
	b = append(b, `", "db_level": "`...)
	b = append(b, r.level...)
	b = append(b, `", "filename": "`...)
	b = append(b, r.filename...)
	b = append(b, `", "worker_id": null, "status": "`...)
	b = append(b, status...)
	return append(b, `"}`...)
}
