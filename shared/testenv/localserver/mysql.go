package localserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-sql-driver/mysql"
)

// MySQL is a private MySQL or MariaDB server without a binary log. Its account is root, without a password,
// and only from 127.0.0.1; SQL cannot reach files outside the server's folder.
type MySQL struct{ *Server }

// FindMySQL finds the machine's MySQL or MariaDB server. The error says what to install.
func FindMySQL() (string, error) {
	if path, ok := find("mysqld", "mariadbd"); ok {
		return path, nil
	}
	return "", errors.New("found neither mysqld nor mariadbd: install MySQL 8.0 or MariaDB 10.11, or later " +
		"(Debian: apt-get install mariadb-server; Ubuntu: apt-get install mysql-server; Fedora: dnf install mariadb-server)")
}

// StartMySQL starts a server and returns when it answers. It first makes the data if there is none.
func StartMySQL(ctx context.Context, o Options) (*MySQL, error) {
	binary := o.Binary
	if binary == "" {
		found, err := FindMySQL()
		if err != nil {
			return nil, err
		}
		binary = found
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	s, err := newServer("mysql", o)
	if err != nil {
		return nil, err
	}
	if err := prepareMySQL(ctx, s.dir, binary); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", binary, err), s.Close())
	}
	data := filepath.Join(s.dir, "data")
	s.command = func() *exec.Cmd {
		args := append(commonArgs(s.dir, data, binary),
			fmt.Sprintf("--port=%d", s.port), "--bind-address=127.0.0.1",
			// Relative to the data, because the path of a socket may have at most 107 bytes.
			"--socket=my.sock", "--pid-file=my.pid",
			"--init-file="+filepath.Join(s.dir, "init.sql"),
			// Without name resolution the server also starts on a machine without "localhost" in its hosts file.
			"--skip-name-resolve", "--disable-log-bin", "--max-connections=500",
			"--innodb-buffer-pool-size=64M", "--performance-schema=OFF",
			// Only MySQL has these options. With "loose", MariaDB only warns about an unknown one.
			"--loose-mysqlx=OFF", "--loose-innodb-redo-log-capacity=32M")
		if !o.Durable {
			// 2 writes each commit to the log file without a sync. 0 would lose up to a second of commits at Kill.
			args = append(args, "--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync")
		}
		cmd := exec.Command(binary, append(args, o.Arguments...)...)
		cmd.Dir = data
		return cmd
	}
	m := &MySQL{s}
	s.ready = func(ctx context.Context, _ int) error { return m.answers(ctx, data) }
	if err := s.firstStart(ctx, o); err != nil {
		return nil, err
	}
	return m, nil
}

// DSN returns a go-sql-driver DSN of the database, which need not exist; "" names none.
func (m *MySQL) DSN(database string) string { return "root@tcp(" + m.Addr() + ")/" + database }

// answers tells whether the server on our port is there and works on our data.
func (m *MySQL) answers(ctx context.Context, data string) error {
	cfg, err := mysql.ParseDSN(m.DSN(""))
	if err != nil {
		return err
	}
	cfg.Logger = &mysql.NopLogger{} // else it logs each attempt
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	var dir string
	if err := db.QueryRowContext(ctx, "SELECT @@datadir").Scan(&dir); err != nil {
		return err
	}
	if filepath.Clean(dir) != data {
		return fmt.Errorf("somebody else's MySQL answers, its data is in %s", dir)
	}
	return nil
}

// commonArgs returns the arguments that initializing the data and running the server have in common. --no-defaults must be
// the first, or the server reads the machine's own configuration. The folder for temporary tables must not be shared, as
// /tmp would be: a MariaDB that starts deletes the temporary tables of all others there.
func commonArgs(dir, data, binary string) []string {
	args := []string{"--no-defaults", "--datadir=" + data, "--tmpdir=" + filepath.Join(dir, "tmp"),
		"--secure-file-priv=" + filepath.Join(dir, "files"), "--loose-innodb-log-file-size=16M"}
	if os.Getuid() == 0 {
		args = append(args, "--user=root") // else it refuses to run as root
	}
	// A server that was unpacked beside a wrapper script has its messages there; any other finds them by itself.
	base := filepath.Join(filepath.Dir(binary), "root", "usr")
	if _, err := os.Stat(base); err == nil {
		args = append(args, "--basedir="+base)
	}
	return args
}

// prepareMySQL makes data/, init.sql, files/ and tmp/ in dir. It does not change an existing data/. A new data/ gets this
// name only when it is complete.
func prepareMySQL(ctx context.Context, dir, binary string) error {
	for _, sub := range []string{"files", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	// MySQL's own root may connect only from localhost. Without name resolution this name does not match 127.0.0.1.
	const account = "CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';\n" +
		"GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
	if err := os.WriteFile(filepath.Join(dir, "init.sql"), []byte(account), 0o600); err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	fresh := filepath.Join(dir, "data.new")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	version, err := run(ctx, dir, binary, "--no-defaults", "--version")
	if err != nil {
		return err
	}
	if strings.Contains(version, "MariaDB") {
		install, ok := find(filepath.Join(filepath.Dir(binary), "mariadb-install-db"), "mariadb-install-db", "mysql_install_db")
		if !ok {
			return fmt.Errorf("found no mariadb-install-db for %s: install the rest of MariaDB's server package", binary)
		}
		args := []string{"--no-defaults", "--datadir=" + fresh, "--tmpdir=" + filepath.Join(dir, "tmp"),
			"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--innodb-log-file-size=16M"}
		if os.Getuid() == 0 {
			args = append(args, "--user=root")
		}
		if _, err := run(ctx, dir, install, args...); err != nil {
			return err
		}
	} else {
		args := append(commonArgs(dir, fresh, binary), "--initialize-insecure", "--loose-innodb-redo-log-capacity=8M")
		if _, err := run(ctx, dir, binary, args...); err != nil {
			return err
		}
	}
	return os.Rename(fresh, data)
}

// run runs a program to its end and returns its output. If the program fails, the error has the output.
func run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	// A script's own children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w:\n%s", program, err, out.String())
	}
	return out.String(), nil
}

// find looks for the first of the programs in PATH and in the folders for servers, which are not in every
// user's PATH. A name with a slash is looked for there only.
func find(names ...string) (string, bool) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
		if filepath.Base(name) != name {
			continue
		}
		for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/libexec"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, true
			}
		}
	}
	return "", false
}
