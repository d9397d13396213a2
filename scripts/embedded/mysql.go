package main

import (
	"fmt"
	"net"
	"time"

	sqle "github.com/dolthub/go-mysql-server"
	"github.com/dolthub/go-mysql-server/memory"
	"github.com/dolthub/go-mysql-server/server"
	"github.com/dolthub/go-mysql-server/sql"
	"github.com/dolthub/go-mysql-server/sql/mysql_db"
	"github.com/dolthub/vitess/go/mysql"
	"github.com/sirupsen/logrus"
)

// database is the name of the database, the name of its user, and the password of this user.
const database = "tierflow"

// startMySQL starts a MySQL with an empty database on addr. It returns the DSN of a user with all rights, and a function
// that stops the server. A statement waits at most wait for another connection's transaction.
func startMySQL(addr string, wait time.Duration) (dsn string, stop func(), err error) {
	// The engine logs every refused statement, but the client gets the error anyway. Other code logs a panic.
	logrus.SetLevel(logrus.FatalLevel)

	// Without native indexes the engine refuses a foreign key to a primary key.
	databases := memory.NewDBProviderWithOpts(memory.NativeIndexProvider(true)).(*memory.DbProvider)
	if err := databases.CreateDatabase(nil, database); err != nil {
		return "", nil, err
	}
	engine := sqle.NewDefault(databases)

	globals := map[string]any{
		"secure_file_priv": "/dev/null", // the default lets SQL read every file that this process can read; this path has none
		"time_zone":        "+00:00",    // for rows that a user inserts
	}
	if err := sql.SystemVariables.AssignValues(globals); err != nil {
		return "", nil, err
	}
	users := engine.Analyzer.Catalog.MySQLDb
	users.SetPersister(&mysql_db.NoopPersister{}) // CREATE USER needs one
	editor := users.Editor()
	users.AddSuperUser(editor, database, "%", database)
	editor.Close()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, err
	}
	config := server.Config{
		Listener: listener,
		Options: []server.Option{
			func(e *sqle.Engine, sessions *server.SessionManager, h mysql.Handler) (*sqle.Engine, *server.SessionManager, mysql.Handler) {
				return e, sessions, newTurns(h, sessions, wait)
			},
		},
	}
	srv, err := server.NewServer(config, engine, sql.NewContext, memory.NewSessionBuilder(databases), nil)
	if err != nil {
		listener.Close()
		return "", nil, err
	}
	go srv.Start() // returns when the listener is closed
	dsn = fmt.Sprintf("%s:%s@tcp(%s)/%s", database, database, listener.Addr(), database)
	return dsn, func() { srv.Close() }, nil
}
