package catalog_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestAServerIsKnownByItsVersion(t *testing.T) {
	for text, want := range map[string]struct {
		name string
		ok   bool
	}{
		"9.7.4-2":                    {"MySQL 9.7.4", true},
		"8.0.16":                     {"MySQL 8.0.16", true},
		"8.0.36-28":                  {"MySQL 8.0.36", true},
		"8.0.15-log":                 {"MySQL 8.0.15", false},
		"5.7.44":                     {"MySQL 5.7.44", false},
		"10.11.19-MariaDB-0+deb12u1": {"MariaDB 10.11.19", true},
		"11.8.2-MariaDB-log":         {"MariaDB 11.8.2", true},
		"10.6.18-MariaDB":            {"MariaDB 10.6.18", false},
		"10.4.2":                     {"MySQL 10.4.2", true},
		"":                           {"MySQL ", false},
		"unknown":                    {"MySQL unknown", false},
	} {
		name, err := catalog.Version(text)
		if name != want.name || (err == nil) != want.ok {
			t.Errorf("%q: %q, %v", text, name, err)
		}
	}
}

// cannotMigrate checks that the migration of a database fails with these words.
func cannotMigrate(t *testing.T, dsn string, words ...string) {
	t.Helper()
	_, err := open(t, dsn).Migrate(t.Context())
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("%s: %v", fault.KindOf(err), err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

func TestAMigrationThatTheServerRefusesSaysWhatToDo(t *testing.T) {
	server, err := localserver.StartMySQL(t.Context(), localserver.Options{Binary: os.Getenv("TIERFLOW_TEST_MYSQLD"), Arguments: []string{"--read-only=1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	root := open(t, server.DSN("mysql"))
	as := func(user string) string {
		cfg, err := mysql.ParseDSN(server.DSN("tierflow"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.User = user
		return cfg.FormatDSN()
	}
	for _, s := range []string{"CREATE DATABASE tierflow", "CREATE USER reader, creator, owner", "GRANT SELECT ON tierflow.* TO reader",
		"GRANT SELECT, INSERT, CREATE ON tierflow.* TO creator", "GRANT ALL ON tierflow.* TO owner"} {
		exec(t, root, s)
	}
	const rights = "give this user all rights on the database tierflow, or migrate as a user that has them"
	cannotMigrate(t, as("owner"), "Error 1290", "read-only", "make MySQL writable, or give the primary in TIERFLOW_MYSQL_DSN")
	exec(t, root, "SET GLOBAL read_only = OFF")
	cannotMigrate(t, as("reader"), "Error 1142", "CREATE command denied", rights)
	exec(t, root, "REVOKE INSERT ON tierflow.* FROM creator")
	cannotMigrate(t, as("creator"), "Error 1142", "INSERT command denied", rights)
	if _, err := open(t, as("owner")).Migrate(t.Context()); err != nil {
		t.Errorf("an owner, when the server is writable: %v", err)
	}
}

func TestAMigrationNamesItsFileAndTheServerWhereNoHintIsKnown(t *testing.T) {
	c := open(t, testserver.MySQL(t))
	exec(t, c, "CREATE VIEW `level` AS SELECT 1 AS content_level") // the table of the first migration
	_, err := c.Migrate(t.Context())
	var m *mysql.MySQLError
	if !errors.As(err, &m) {
		t.Fatal(err)
	}
	if text := err.Error(); !strings.Contains(text, "00001_level.sql: Error ") || strings.Contains(text, "partial migration") {
		t.Error(text)
	}
}

func TestAServerThatIsTooOldIsNotMigrated(t *testing.T) {
	binary := os.Getenv("TIERFLOW_TEST_MYSQLD")
	if binary == "" {
		var err error
		if binary, err = localserver.FindMySQL(); err != nil {
			t.Fatal(err)
		}
	}
	if real, err := filepath.EvalSymlinks(binary); err != nil || !strings.Contains(real, "mariadb") {
		t.Skip("only MariaDB starts under another version")
	}
	server, err := localserver.StartMySQL(t.Context(), localserver.Options{Binary: binary, Arguments: []string{"--version=10.5.28-MariaDB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	exec(t, open(t, server.DSN("mysql")), "CREATE DATABASE tierflow")
	cannotMigrate(t, server.DSN("tierflow"), "MariaDB 10.5.28 is too old (use MySQL 8.0.16 or later, or MariaDB 10.11 or later)")
	var tables int
	if err := open(t, server.DSN("tierflow")).DB().QueryRow("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'tierflow'").
		Scan(&tables); err != nil || tables > 0 {
		t.Errorf("%d tables were made (%v)", tables, err)
	}
}
