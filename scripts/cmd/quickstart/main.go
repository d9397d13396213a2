// Command quickstart runs the whole of Tierflow on this machine, with sample items that move between three tiers,
// and leaves nothing behind. ./scripts/quickstart builds and starts it.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, as kong fills them. No environment variable sets one: the variables of the services may name
// servers in production.
type arguments struct {
	RedisURL string `name:"redis-url" placeholder:"URL" help:"A Redis (7.0 or later) to use. Keys get a prefix of their own and are deleted at the end."`
	MySQLDSN string `name:"mysql-dsn" placeholder:"DSN" help:"A MySQL (8.0.16) or MariaDB (10.11 or later) to use, as user:password@tcp(host:port)/database. The database must be empty and is emptied at the end; where the DSN names none, one is made and dropped."`
	Embedded bool   `help:"Use the embedded servers even if this machine has real ones."`
	Once     bool   `help:"Do the tour, check the result, and exit 0, or 1 and say what is wrong."`
	Started  string `hidden:"" help:"When the user pressed Enter, in seconds since 1970: the script that starts this knows."`
}

func main() {
	began := time.Now()
	var a arguments
	if _, err := settings.Parse("quickstart", "Runs the whole of Tierflow on this machine until Ctrl-C and leaves nothing behind. "+
		"Servers: those that are given; else redis-server and mysqld or mariadbd, started privately; else embedded ones.",
		&a, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(process.Settings)
	}
	var seconds float64
	if n, err := fmt.Sscanf(a.Started, "%f", &seconds); n == 1 && err == nil {
		began = time.UnixMicro(int64(seconds * 1e6))
	}
	info, err := os.Stdout.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
	os.Exit(process.Run(func(ctx context.Context) int {
		q := &quickstart{arguments: a, began: began, environ: os.Environ(), out: screen{os.Stdout, terminal}}
		err := q.run(ctx)
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "\nquickstart: %v\n", err)
			return process.Failed
		}
		return process.OK
	}))
}
