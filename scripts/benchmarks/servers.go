package benchmarks

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// Redis starts a Redis for the part. Its data is in the part's folder, unless o says otherwise.
func (b *Bench) Redis(ctx context.Context, o localserver.Options) (*localserver.Redis, error) {
	if o.Dir == "" {
		o.Dir = filepath.Join(b.Dir, "redis")
	}
	s, err := localserver.StartRedis(ctx, o)
	if err != nil {
		return nil, err
	}
	b.Cleanup(s.Close)
	return s, nil
}

// MySQL starts a MySQL or MariaDB for the part, with an empty database named "tierflow". Its data is in the part's folder,
// unless o says otherwise.
func (b *Bench) MySQL(ctx context.Context, o localserver.Options) (*localserver.MySQL, error) {
	if o.Dir == "" {
		o.Dir = filepath.Join(b.Dir, "mysql")
	}
	s, err := localserver.StartMySQL(ctx, o)
	if err != nil {
		return nil, err
	}
	b.Cleanup(s.Close)
	return s, createDatabase(ctx, s.DSN(""), "tierflow")
}

// Stack prepares a Tierflow for the part; no service runs yet. Where o has no Programs, Dir or Environ, it takes the part's.
func (b *Bench) Stack(ctx context.Context, o stack.Options) (*stack.Stack, error) {
	if o.Programs == "" {
		o.Programs = b.Programs
	}
	if o.Dir == "" {
		o.Dir = b.Dir
	}
	if o.Environ == nil {
		o.Environ = b.Environ
	}
	s, err := stack.New(ctx, o)
	if err != nil {
		return nil, err
	}
	b.Cleanup(s.Close)
	return s, nil
}

func createDatabase(ctx context.Context, dsn, name string) (err error) {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, "CREATE DATABASE "+name)
	return err
}
