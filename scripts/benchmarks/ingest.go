package benchmarks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tierflow/tierflow/scripts/internal/stack"
	"github.com/tierflow/tierflow/shared/child"
	"github.com/tierflow/tierflow/shared/content"
	"github.com/tierflow/tierflow/shared/localserver"
)

var ingest = Part{
	Name:  "ingest",
	About: "view counts: single posts, batches, appends",
	Run:   runIngest,
}

const (
	connections = 64
	contents    = 10_000
	// firstID is the first content's. All ids have five digits, so that all requests are equally long.
	firstID = 10_001
)

// posts is a running api with contents and nothing behind it, and what it is compared with.
type posts struct {
	*Bench
	stack               *stack.Stack
	redisAddr, mysqlDSN string
}

func runIngest(ctx context.Context, b *Bench) error {
	p, err := startPosts(ctx, b, contents, localserver.Options{}, nil)
	if err != nil {
		return err
	}
	baselines, err := p.startBaselines(ctx)
	if err != nil {
		return err
	}
	skewed := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, contents-1)
	for _, l := range []struct {
		name string
		next func() content.ID
	}{
		{"uniform", func() content.ID { return content.ID(firstID + rand.IntN(contents)) }},
		{"skewed", func() content.ID { return content.ID(firstID + skewed.Uint64()) }},
	} {
		load, err := newLoad(b, l.name, l.next)
		if err != nil {
			return err
		}
		err = b.Compare(ctx, Case{
			Figure: Figure{Name: "single posts, " + l.name, Unit: "posts/s"},
			Ours:   Subject{Name: "api", Measure: func(ctx context.Context) (float64, error) { return p.measure(ctx, load) }},
			Against: []Subject{
				{Name: "bare echo handler", AtLeast: 0.55, Measure: func(ctx context.Context) (float64, error) {
					r, err := load.run(ctx, "http://"+baselines+"/echo")
					return r.rate(), err
				}},
				{Name: "look up and SET for each", AtLeast: 5, Measure: func(ctx context.Context) (float64, error) {
					r, err := load.run(ctx, "http://"+baselines+"/original")
					return r.rate(), err
				}},
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startPosts starts servers and an api with n contents, of which half lie where the counts that are posted call for.
// No relocator runs: the events stay in the stream, to be counted.
func startPosts(ctx context.Context, b *Bench, n int, redis localserver.Options, settings map[string]string) (*posts, error) {
	server, err := b.Redis(ctx, redis)
	if err != nil {
		return nil, err
	}
	dsn, err := b.MySQL(ctx, localserver.Options{})
	if err != nil {
		return nil, err
	}
	s, err := b.Stack(ctx, stack.Options{RedisURL: server.URL(), MySQLDSN: dsn, Settings: settings})
	if err != nil {
		return nil, err
	}
	p := &posts{Bench: b, stack: s, redisAddr: server.Addr(), mysqlDSN: dsn}
	if err := p.insert(ctx, n); err != nil {
		return nil, err
	}
	// A rewrite of the append-only file in the middle of one measurement would be missing in the next.
	if err := s.Redis.ConfigSet(ctx, "auto-aof-rewrite-percentage", "0").Err(); err != nil {
		return nil, err
	}
	return p, s.API.Start(ctx)
}

// insert makes rows; there are no files.
func (p *posts) insert(ctx context.Context, n int) error {
	const rows = 5000
	for from := 0; from < n; from += rows {
		var values []string
		for i := from; i < min(from+rows, n); i++ {
			level := "gold"
			if i%2 == 0 {
				level = "bronze"
			}
			values = append(values, fmt.Sprintf("(%d,'%s','videos/%d.mp4')", firstID+i, level, firstID+i))
		}
		statement := "INSERT INTO contents (cid, content_level, filename) VALUES " + strings.Join(values, ",")
		if _, err := p.stack.DB().ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("insert contents: %w", err)
		}
	}
	return nil
}

// startBaselines starts what the api is compared with and returns its address.
func (p *posts) startBaselines(ctx context.Context) (addr string, err error) {
	err = stack.Build(ctx, stack.BuildOptions{Root: p.Root, Dir: p.Programs, Cache: filepath.Join(p.Dir, "cache"),
		Packages: []string{"./scripts/cmd/baseline"}})
	if err != nil {
		return "", err
	}
	port, err := localserver.FreePort()
	if err != nil {
		return "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	c := child.New(child.Options{
		Name: "baseline", Log: filepath.Join(p.Dir, "baseline.log"),
		Command: func() *exec.Cmd {
			return exec.Command(filepath.Join(p.Programs, "baseline"), addr, p.mysqlDSN, p.redisAddr)
		},
		Ready: func(ctx context.Context, _ int) error { return answers(ctx, addr) },
	})
	p.Cleanup(c.Kill)
	return addr, c.Start(ctx)
}

// measure posts for a while and checks what became of it.
func (p *posts) measure(ctx context.Context, l *load) (float64, error) {
	if err := p.clear(ctx); err != nil {
		return 0, err
	}
	r, err := l.run(ctx, "http://"+p.stack.API.Addr+"/post_sentence")
	if err != nil {
		return 0, err
	}
	return r.rate(), p.account(ctx, r)
}

func (b *Bench) seconds() time.Duration {
	if b.Quick {
		return time.Second
	}
	return 5 * time.Second
}

// writeFile is os.WriteFile into the part's folder; it returns the path.
func (b *Bench) writeFile(name string, data []byte) (string, error) {
	path := filepath.Join(b.Dir, name)
	return path, os.WriteFile(path, data, 0o644)
}
