package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/fault"
)

var (
	minMySQL   = []int{8, 0, 16}  // the first that checks CHECK constraints
	minMariaDB = []int{10, 11, 0} // the oldest that the tests run on
)

const versionHint = "use MySQL 8.0.16 or later, or MariaDB 10.11 or later"

var versionNumbers = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)`)

// Version reads what a server answers to SELECT VERSION(), and returns a name such as "MariaDB 10.11.14". The error says that
// Tierflow cannot use a server of this version.
func Version(text string) (name string, err error) {
	number, rest, _ := strings.Cut(text, "-")
	name, first := "MySQL "+number, minMySQL
	if strings.Contains(rest, "MariaDB") {
		name, first = "MariaDB "+number, minMariaDB
	}
	m := versionNumbers.FindStringSubmatch(number)
	if m == nil {
		return name, fmt.Errorf("its version %q cannot be read", text)
	}
	version := make([]int, len(first))
	for i := range version {
		version[i], _ = strconv.Atoi(m[i+1]) // digits
	}
	if slices.Compare(version, first) < 0 {
		return name, fmt.Errorf("%s is too old", name)
	}
	return name, nil
}

// checkVersion returns the name of the server, and an error where Tierflow cannot use it.
func checkVersion(ctx context.Context, db *sql.DB) (name string, err error) {
	var text string
	if err := db.QueryRowContext(ctx, "SELECT VERSION()").Scan(&text); err != nil {
		return "", err
	}
	if name, err = Version(text); err != nil {
		return name, &fault.Error{Kind: fault.Unavailable, Op: "migrate", Err: err, Hint: versionHint}
	}
	return name, nil
}

// explain says what an operator can do where the server, of that name, refuses a migration of the database.
func explain(database, server string, err error) error {
	wrapped := Wrap("migrate", database, err)
	var f *fault.Error
	var m *mysql.MySQLError
	if !errors.As(wrapped, &f) || !errors.As(err, &m) {
		return wrapped
	}
	said := *f
	switch m.Number {
	case 1044, 1142, 1143, 1227, 1370:
		said.Hint = "give this user all rights on the database " + database + ", or migrate as a user that has them"
	default:
		if said.Hint == "" {
			said.Hint = "the server, " + server + ", does not take this table: change its setting, or " + versionHint
		}
	}
	return &said
}
