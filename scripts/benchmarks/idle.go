package benchmarks

import (
	"context"
	"maps"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

var idle = Part{
	Name:  "idle",
	About: "what each service takes of CPU and memory when there is nothing to do",
	Run:   runIdle,
}

// runIdle measures services that have worked before, so their connections are open and their caches are filled.
func runIdle(ctx context.Context, b *Bench) error {
	settling, lasts := 5*time.Second, 20*time.Second
	if b.Quick {
		settling, lasts = time.Second, 3*time.Second
	}
	t, err := startTierflow(ctx, b, stack.Options{Dir: b.Dir}, smallFiles(1000, "bronze"))
	if err != nil {
		return err
	}
	for _, level := range []string{"silver", "bronze"} {
		if _, err := t.moveAll(ctx, level); err != nil {
			return err
		}
	}
	if err := wait(ctx, settling); err != nil {
		return err
	}
	services := map[string]int{
		"api": t.stack.API.PID(), "relocator": t.stack.Relocators[0].PID(), "committer": t.stack.Committer.PID(),
	}
	pids := map[string]int{"Redis": t.redis.PID(), "MySQL": t.mysql.PID()}
	maps.Copy(pids, services)
	for round := range min(b.Rounds, 3) {
		m, err := startMeter(pids)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := wait(ctx, lasts); err != nil {
			return err
		}
		used, err := m.used()
		if err != nil {
			return err
		}
		share := func(program string) float64 { return 100 * used[program].Seconds() / time.Since(begin).Seconds() }
		for _, name := range []string{"api", "relocator", "committer"} {
			memory, err := residentMemory(services[name])
			if err != nil {
				return err
			}
			b.Observe(Figure{Name: name + ", CPU when idle", Unit: "% of a core", Max: 1}, share(name))
			b.Observe(Figure{Name: name + ", memory when idle", Unit: "MiB", Max: 40}, memory)
			b.Logf("round %d: %s: %s %% of a core, %s MiB", round+1, name, number(share(name)), number(memory))
		}
		for _, name := range []string{"Redis", "MySQL"} {
			b.Observe(Figure{Name: name + ", CPU when idle", Unit: "% of a core"}, share(name))
		}
	}
	return t.stack.CheckSettled(ctx)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
