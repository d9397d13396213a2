package mover_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// BenchmarkSmallMoves moves files of 16 KiB on the file system of TMPDIR, 256 at the same time, as a relocator does. It
// measures from the look at the source to the durable release. ./scripts/bench moves runs it beside a bare loop.
func BenchmarkSmallMoves(b *testing.B) {
	from, to := routes[0].tiers(b)
	names := make([]string, b.N)
	for i := range names {
		names[i] = fmt.Sprintf("videos/%02d/%05d", i/1000, i)
		write(b, from.Path+"/"+names[i], []byte(strings.Repeat(fmt.Sprintf("%08d", i), 2<<10)))
	}
	unix.Sync()
	m := mover.New(mover.Options{})
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 256 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				r := request(from, to, names[i])
				r.ID = item.ID(i + 1)
				made, err := m.Make(context.Background(), r)
				if err != nil {
					b.Error(err)
					return
				}
				if err := made.Discard(); err != nil {
					b.Error(err)
				}
				rel := release(from, names[i])
				rel.ID = r.ID
				if out, err := m.Release(context.Background(), rel); err != nil || out != mover.Released {
					b.Errorf("release: %s, %v", out, err)
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	for i, name := range names {
		got, err := os.ReadFile(to.Path + "/" + name)
		if err != nil || string(got) != strings.Repeat(fmt.Sprintf("%08d", i), 2<<10) {
			b.Fatalf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if left := tree(b, from.Path); len(left) > 1 {
		b.Errorf("%d files and folders were not released", len(left))
	}
	for _, l := range []policy.Level{from, to} {
		if left := scratch(b, l); len(left) > 0 {
			b.Errorf("left: %v", left)
		}
	}
}
