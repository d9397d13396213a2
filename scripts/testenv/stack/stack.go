package stack

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

// Options are the options of a Stack.
type Options struct {
	Programs string // the Dir of Build
	Dir      string // an existing folder, for logs and for tiers that are not in Tiers

	RedisURL    string
	RedisPrefix string // "" is state.DefaultPrefix
	Partitions  int    // 0 means 1
	MySQLDSN    string // of a database without tables, or with those of an earlier stack

	// Tiers has the folders of levels, by name. A level that it does not name gets a folder in Dir.
	Tiers map[string]string

	// Settings are further settings of every service, by the name of the environment variable.
	Settings map[string]string

	// Environ is os.Environ(), which only main and tests may call. Its TIERFLOW_ settings are ignored.
	Environ []string

	APIListen  string // "" takes a free port on loopback
	Relocators int    // 0 means 1
	Committers int    // 0 means 1
}

// Stack is one Tierflow.
type Stack struct {
	API        *Service
	Relocators []*Service
	Committer  *Service   // the first of them
	Committers []*Service // all of them

	Redis   redis.UniversalClient
	Keys    state.Keys
	Catalog *catalog.Catalog

	o           Options
	environment []string // of every service
	local       func(path string) string
	key         string // of the API

	mu       sync.Mutex
	expected map[item.ID]*expected
}

// New prepares a stack: the schema, the paths of the levels, the tiers. No service runs yet. The caller must Close it.
func New(ctx context.Context, o Options) (*Stack, error) {
	if o.RedisPrefix == "" {
		o.RedisPrefix = state.DefaultPrefix
	}
	o.Partitions = max(o.Partitions, 1)
	s := &Stack{o: o, Keys: state.NewKeys(o.RedisPrefix).Partitioned(o.Partitions), expected: map[item.ID]*expected{}}
	s.environment = slices.DeleteFunc(slices.Clone(o.Environ), func(v string) bool { return strings.HasPrefix(v, "TIERFLOW_") })
	s.environment = append(s.environment, assignments(o.Settings)...)
	s.environment = append(s.environment, "TIERFLOW_REDIS_URL="+o.RedisURL, "TIERFLOW_REDIS_PREFIX="+o.RedisPrefix,
		"TIERFLOW_PARTITIONS="+strconv.Itoa(o.Partitions), "TIERFLOW_MYSQL_DSN="+o.MySQLDSN)
	var err error
	if s.Redis, err = state.Connect(o.RedisURL, 3); err != nil {
		return nil, fmt.Errorf("Redis URL: %w", err)
	}
	if s.Catalog, err = catalog.Open(o.MySQLDSN, catalog.Options{MaxConns: 4}); err != nil {
		return nil, errors.Join(err, s.Redis.Close())
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Stack) prepare(ctx context.Context) error {
	if _, err := s.MustRun(ctx, Committer, "migrate"); err != nil {
		return err
	}
	if err := s.placeLevels(ctx); err != nil {
		return err
	}
	if _, err := s.MustRun(ctx, Relocator, "init-tiers"); err != nil {
		return err
	}
	var err error
	if s.API, err = s.service(API, API, s.o.APIListen); err != nil {
		return err
	}
	for n := range max(s.o.Relocators, 1) {
		r, err := s.service(Relocator, fmt.Sprintf("relocator-%d", n+1), "")
		if err != nil {
			return err
		}
		s.Relocators = append(s.Relocators, r)
	}
	for n := range max(s.o.Committers, 1) {
		c, err := s.service(Committer, fmt.Sprintf("committer-%d", n+1), "")
		if err != nil {
			return err
		}
		s.Committers = append(s.Committers, c)
	}
	s.Committer = s.Committers[0]
	return nil
}

// placeLevels writes the tiers' folders into the table level, as an operator does with SQL.
func (s *Stack) placeLevels(ctx context.Context) error {
	folders, err := s.Folders(ctx)
	if err != nil {
		return err
	}
	for level := range folders {
		path, ok := s.o.Tiers[level]
		if !ok {
			path = filepath.Join(s.o.Dir, "tiers", level)
		}
		if _, err := s.DB().ExecContext(ctx, "UPDATE `level` SET path = ? WHERE content_level = ?", path, level); err != nil {
			return fmt.Errorf("set the path of level %s: %w", level, err)
		}
	}
	return nil
}

// Folders returns the folders of the tiers, by level. Like all that a stack of an earlier version needs, it reads no column that
// such a version may not have.
func (s *Stack) Folders(ctx context.Context) (map[string]string, error) {
	rows, err := s.DB().QueryContext(ctx, "SELECT content_level, path FROM `level`")
	if err != nil {
		return nil, fmt.Errorf("read the levels: %w", err)
	}
	defer rows.Close()
	folders := map[string]string{}
	for rows.Next() {
		var level, path string
		if err := rows.Scan(&level, &path); err != nil {
			return nil, fmt.Errorf("read the levels: %w", err)
		}
		folders[level] = s.at(path)
	}
	return folders, rows.Err()
}

// DB returns the stack's database.
func (s *Stack) DB() *sql.DB { return s.Catalog.DB() }

// Services returns all services, the api first.
func (s *Stack) Services() []*Service {
	var all []*Service
	for _, v := range slices.Concat([]*Service{s.API}, s.Relocators, s.Committers) {
		if v != nil {
			all = append(all, v)
		}
	}
	return all
}

// Start starts all services at once and returns when all are ready.
func (s *Stack) Start(ctx context.Context) error {
	return each(s.Services(), func(v *Service) error { return v.Start(ctx) })
}

// Stop stops all services at once with SIGTERM. It is an error when a running one does not exit with 0.
func (s *Stack) Stop() error {
	return each(s.Services(), func(v *Service) error {
		if v.Process == nil || v.PID() == 0 {
			return nil
		}
		code, err := v.Terminate(context.Background())
		if err == nil && code != 0 {
			err = fmt.Errorf("%s: exit code %d after SIGTERM; the end of its log:\n%s", v.Name, code, v.Log())
		}
		return err
	})
}

// Close stops the services and closes the connections. The data in folders, Redis and MySQL stays.
func (s *Stack) Close() error {
	return errors.Join(s.Stop(), s.Redis.Close(), s.Catalog.Close())
}

// Run runs a subcommand of a program with the stack's settings to its end. It returns the output and the exit code.
func (s *Stack) Run(ctx context.Context, program string, args ...string) (output string, code int, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.o.Programs, program), args...)
	cmd.Dir = s.o.Dir
	cmd.Env = s.environment
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if err != nil {
		return string(out), -1, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return string(out), cmd.ProcessState.ExitCode(), nil
}

// MustRun is Run, but an exit code other than 0 is an error, which has the output.
func (s *Stack) MustRun(ctx context.Context, program string, args ...string) (output string, err error) {
	output, code, err := s.Run(ctx, program, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s %s: exit code %d:\n%s", program, strings.Join(args, " "), code, output)
	}
	return output, err
}

// Logs returns the end of every service's log, for an error message.
func (s *Stack) Logs() string {
	var b strings.Builder
	for _, v := range s.Services() {
		fmt.Fprintf(&b, "--- the end of the log of %s:\n%s", v.Name, v.Log())
	}
	return b.String()
}

// SecondFilesystem makes an empty folder on another file system than dir's, with at least so many bytes free, so
// that moves between the two are real copies. The caller removes it. ok is false if the machine has none.
func SecondFilesystem(dir string, free uint64) (folder string, ok bool) {
	home, err := filesystem(dir)
	if err != nil {
		return "", false
	}
	for _, place := range []string{"/dev/shm", fmt.Sprintf("/run/user/%d", os.Getuid()), "/var/tmp", "/tmp"} {
		there, err := filesystem(place)
		if err != nil || there.device == home.device || there.free < free {
			continue
		}
		if folder, err := os.MkdirTemp(place, "tierflow-"); err == nil {
			return folder, true
		}
	}
	return "", false
}

// each calls f for all services at once and joins the errors.
func each(services []*Service, f func(*Service) error) error {
	errs := make([]error, len(services))
	var wg sync.WaitGroup
	for i, v := range services {
		wg.Go(func() { errs[i] = f(v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// assignments returns the settings in the form NAME=value.
func assignments(settings map[string]string) []string {
	var list []string
	for name, value := range settings {
		list = append(list, name+"="+value)
	}
	return list
}
