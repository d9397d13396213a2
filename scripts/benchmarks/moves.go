package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
)

var moves = Part{
	Name:  "moves",
	About: "small and large files from tier to tier, against rsync, rclone, cp and a bare loop",
	Run:   runMoves,
}

func runMoves(ctx context.Context, b *Bench) error {
	return errors.Join(smallMoves(ctx, b), largeMoves(ctx, b))
}

func (b *Bench) smallCount() int {
	if b.Quick {
		return 2000
	}
	return 20_000
}

// smallMoves moves small files there and back: each measurement starts where the one before has ended.
func smallMoves(ctx context.Context, b *Bench) error {
	n := b.smallCount()
	memory, err := b.inMemory(int64(n) * 64 << 10)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.Dir, "small")
	t, err := startTierflow(ctx, b, stack.Options{Dir: dir, Tiers: map[string]string{"gold": memory + "/gold"}}, smallFiles(n, "bronze"))
	if err != nil {
		return err
	}
	other, err := newTrees(b, memory, n)
	if err != nil {
		return err
	}
	rate := func(took time.Duration) float64 { return float64(n) / took.Seconds() }
	to := map[string]string{"bronze": "silver", "silver": "bronze"}
	at := "bronze"
	const within, across = "files of 16 KiB, one file system", "files of 16 KiB, tmpfs to disk"
	err = b.Compare(ctx, Case{
		Figure: Figure{Name: within, Unit: "moves/s"},
		Ours: Subject{Name: "from the post to the last release", Measure: func(ctx context.Context) (float64, error) {
			at = to[at]
			took, err := t.moveAll(ctx, at)
			b.observeCost(within, t.spent)
			return rate(took), err
		}},
		Against: []Subject{
			{Name: "rsync --remove-source-files --fsync", Min: 2.5, Measure: func(ctx context.Context) (float64, error) {
				took, err := other.swap(ctx, "rsync", "-a", "--remove-source-files", "--fsync")
				return rate(took), err
			}},
			{Name: "bare loop of syncs, 32 at once", Min: 0.7, Measure: func(context.Context) (float64, error) {
				took, err := other.loop()
				return rate(took), err
			}},
		},
	})
	if err != nil {
		return err
	}
	err = b.Compare(ctx, Case{
		Figure: Figure{Name: "files of 16 KiB, one file system, the engine alone", Unit: "moves/s"},
		Ours: Subject{Name: "mover", Measure: func(ctx context.Context) (float64, error) {
			return b.engine(ctx, n)
		}},
		Against: []Subject{
			{Name: "bare loop of syncs, 32 at once", Min: 2, Measure: func(context.Context) (float64, error) {
				took, err := other.loop()
				return rate(took), err
			}},
			{Name: "bare program of the same steps, 256 at once", Measure: func(context.Context) (float64, error) {
				took, err := other.steps()
				return rate(took), err
			}},
		},
	})
	if err != nil {
		return err
	}
	return b.Compare(ctx, Case{
		Figure: Figure{Name: across, Unit: "moves/s"},
		Ours: Subject{Name: "from the post to the last release", Measure: func(ctx context.Context) (float64, error) {
			if _, err := t.moveAll(ctx, "gold"); err != nil { // gold is in memory
				return 0, err
			}
			took, err := t.moveAll(ctx, "bronze")
			b.observeCost(across, t.spent)
			return rate(took), err
		}},
		Against: []Subject{
			{Name: "rclone move, 32 at once", Min: 2, Measure: func(ctx context.Context) (float64, error) {
				took, err := other.across(ctx, "rclone", "move", "--transfers=32", "--checkers=32", "--config=")
				return rate(took), err
			}},
			{Name: "rsync --remove-source-files --fsync", Min: 3, Measure: func(ctx context.Context) (float64, error) {
				took, err := other.across(ctx, "rsync", "-a", "--remove-source-files", "--fsync")
				return rate(took), err
			}},
			{Name: "bare program of the same steps, 256 at once", Measure: func(context.Context) (float64, error) {
				took, err := other.copies()
				return rate(took), err
			}},
		},
	})
}

// observeCost records the CPU time of each program for a move.
func (b *Bench) observeCost(of string, c cost) {
	b.Observe(Figure{Name: of + ", CPU of all programs", Unit: "µs/move"}, c.sum())
	for _, program := range []string{"relocator", "Redis", "MySQL", "committer", "api"} {
		b.Observe(Figure{Name: of + ", CPU of " + program, Unit: "µs/move"}, c[program])
	}
}

// trees holds the files that the other programs move.
type trees struct {
	a, b   string // on the disk
	memory string // on another file system
	n      int
}

// newTrees makes trees with n files in a.
func newTrees(b *Bench, memory string, n int) (*trees, error) {
	t := &trees{filepath.Join(b.Dir, "a"), filepath.Join(b.Dir, "b"), filepath.Join(memory, "tree"), n}
	return t, errors.Join(fill(t.a, n), os.Mkdir(t.b, 0o755))
}

func fill(dir string, n int) error {
	data := make([]byte, 16<<10)
	for i := range n {
		if i%1000 == 0 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("%02d", i/1000)), 0o755); err != nil {
				return err
			}
		}
		copy(data, strconv.Itoa(i))
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d/%05d.mp4", i/1000, i)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// swap runs a program that moves all files from a to b. The next call moves them back.
func (t *trees) swap(ctx context.Context, program string, args ...string) (time.Duration, error) {
	took, err := t.run(ctx, t.a, t.b, program, args...)
	t.a, t.b = t.b, t.a
	return took, err
}

// across runs a program that moves new files from memory to the disk.
func (t *trees) across(ctx context.Context, program string, args ...string) (time.Duration, error) {
	if err := t.refill(); err != nil {
		return 0, err
	}
	return t.run(ctx, t.memory, t.b, program, args...)
}

// refill makes new files in memory, and room for them on the disk.
func (t *trees) refill() error {
	return errors.Join(os.RemoveAll(t.memory), os.RemoveAll(t.b), os.Mkdir(t.b, 0o755), fill(t.memory, t.n))
}

func (t *trees) run(ctx context.Context, from, to, program string, args ...string) (time.Duration, error) {
	syscall.Sync()
	begin := time.Now()
	cmd := exec.CommandContext(ctx, program, append(args, from+"/", to+"/")...)
	out, err := cmd.CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return took, t.check(from, to)
}

// check checks that every file is at its new place with its bytes, and that none is at the old one.
func (t *trees) check(from, to string) error {
	left := 0
	err := filepath.WalkDir(from, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left++
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	if err != nil || left > 0 {
		return errors.Join(err, fmt.Errorf("%d files are where they were", left))
	}
	for i := range t.n {
		b, err := os.ReadFile(filepath.Join(to, fmt.Sprintf("%02d/%05d.mp4", i/1000, i)))
		if err != nil {
			return err
		}
		if want := strconv.Itoa(i); len(b) != 16<<10 || string(b[:len(want)]) != want {
			return fmt.Errorf("file %d has changed", i)
		}
	}
	return nil
}

// engine runs the mover's own benchmark, which checks its results: Make, Discard and Release of n files.
func (b *Bench) engine(ctx context.Context, n int) (float64, error) {
	each, err := b.goBenchmark(ctx, "relocator/internal/mover", "SmallMoves", n, "TMPDIR="+b.Dir)
	return 1 / each.Seconds(), err
}

// largeMoves moves four files from memory to the disk.
func largeMoves(ctx context.Context, b *Bench) error {
	size := int64(2 << 30)
	if b.Quick {
		size = 64 << 20
	}
	memory, err := b.inMemory(4*size + 64<<20)
	if err != nil {
		return err
	}
	for _, c := range []struct{ verify, against string }{
		{"stream", "cp, sync"},
		{"readback", "cp, sync, cold cat"},
	} {
		files := make([]stack.Sample, 4)
		for i := range files {
			files[i] = stack.Sample{ID: item.ID(firstID + i), Level: "gold", Size: size, Filename: fmt.Sprintf("%d.mp4", i)}
		}
		dir := filepath.Join(b.Dir, c.verify)
		gold := filepath.Join(memory, c.verify)
		t, err := startTierflow(ctx, b, stack.Options{Dir: dir, Tiers: map[string]string{"gold": gold},
			Settings: map[string]string{"TIERFLOW_VERIFY": c.verify}}, files)
		if err != nil {
			return err
		}
		rate := func(took time.Duration) float64 { return float64(4*size) / (1 << 20) / took.Seconds() }
		pid := t.stack.Relocators[0].PID()
		at := "gold"
		err = b.Compare(ctx, Case{
			Figure: Figure{Name: "4 files of " + sizeName(size) + ", tmpfs to disk, verify=" + c.verify, Unit: "MiB/s"},
			Ours: Subject{Name: "from the post to the last release", Measure: func(ctx context.Context) (float64, error) {
				if at != "gold" {
					if _, err := t.moveAll(ctx, "gold"); err != nil {
						return 0, err
					}
				}
				at = "bronze"
				took, err := t.moveAll(ctx, "bronze")
				return rate(took), err
			}},
			Against: []Subject{{Name: c.against, Min: 0.8, Measure: func(ctx context.Context) (float64, error) {
				if at != "gold" {
					if _, err := t.moveAll(ctx, "gold"); err != nil {
						return 0, err
					}
					at = "gold"
				}
				took, err := copyPlain(ctx, gold, filepath.Join(b.Dir, "plain"), c.verify == "readback")
				return rate(took), err
			}}},
		})
		if err != nil {
			return err
		}
		peak, err := peakMemory(pid)
		if err != nil {
			return err
		}
		b.Observe(Figure{Name: "relocator's memory at its peak, verify=" + c.verify, Unit: "MiB", Max: 64}, peak)
		if err := errors.Join(t.stack.Stop(), os.RemoveAll(gold), os.RemoveAll(filepath.Join(dir, "tiers"))); err != nil {
			return err
		}
	}
	return nil
}

func sizeName(size int64) string {
	if size >= 1<<30 {
		return fmt.Sprintf("%d GiB", size>>30)
	}
	return fmt.Sprintf("%d MiB", size>>20)
}

// copyPlain copies as an operator would: cp and sync. With readBack it also drops the copy from memory and reads it from the
// disk.
func copyPlain(ctx context.Context, from, to string, readBack bool) (time.Duration, error) {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(to) }()
	script := `cp "$0"/*.mp4 "$1"/ && sync "$1"/*.mp4 "$1"`
	if readBack {
		script += ` && for f in "$1"/*.mp4; do dd if="$f" iflag=nocache count=0 status=none; done && cat "$1"/*.mp4 >/dev/null`
	}
	syscall.Sync()
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "sh", "-c", script, from, to).CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("cp: %w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "diff", "-r", "--exclude=.tierflow", from, to).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("cp: the copies differ: %w: %s", err, out)
	}
	return took, nil
}
