package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// The services' programs.
const (
	API       = "api"
	Relocator = "relocator"
	Committer = "committer"
)

// BuildOptions are the options of Build.
type BuildOptions struct {
	Root     string   // folder of go.work, see Root
	Dir      string   // folder for the programs, which only the caller uses
	Cache    string   // folder that keeps them, so that a later Build need not link again: see DefaultCache
	Race     bool     // with the race detector
	Packages []string // instead of the services: folders of main packages, relative to Root
	Module   string   // folder of the packages' module, relative to Root, if it is outside go.work
}

// Build builds the services' programs, or those of o.Packages, in o.Dir. The error has the compiler's output.
func Build(ctx context.Context, o BuildOptions) error {
	packages := o.Packages
	if packages == nil {
		packages = []string{"./api/cmd/api", "./relocator/cmd/relocator", "./committer/cmd/committer"}
	}
	cache := filepath.Join(o.Cache, "plain")
	args := []string{"build"}
	if o.Race {
		cache = filepath.Join(o.Cache, "race")
		args = append(args, "-race")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append(append(args, "-o", cache+"/"), packages...)...)
	cmd.Dir = filepath.Join(o.Root, o.Module)
	cmd.Env = append(cmd.Environ(), "GOWORK="+filepath.Join(o.Root, "go.work"))
	if o.Module != "" {
		cmd.Env = append(cmd.Env, "GOWORK=off")
	}
	// Linking replaces a program in the cache, so another Build with this cache, from any process, must wait.
	unlock, err := lock(filepath.Join(cache, ".lock-"+filepath.Base(o.Module)))
	if err != nil {
		return err
	}
	defer unlock()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	for _, p := range packages {
		name := filepath.Base(p)
		if p == "." {
			name = filepath.Base(o.Module)
		}
		if err := link(filepath.Join(cache, name), filepath.Join(o.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// BuildTemp is Build for tests: into a new folder, which the caller removes, also after an error. It finds o.Root, o.Dir
// and o.Cache by itself.
func BuildTemp(ctx context.Context, o BuildOptions) (dir string, err error) {
	if o.Root, err = Root(); err != nil {
		return "", err
	}
	if o.Cache, err = DefaultCache(ctx, o.Root); err != nil {
		return "", err
	}
	if o.Dir, err = os.MkdirTemp("", "tierflow-programs-"); err != nil {
		return "", err
	}
	return o.Dir, Build(ctx, o)
}

// link gives a program a second name that a later Build does not replace. It makes a copy if a link is impossible.
func link(from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// lock waits for the lock file, and takes it.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil // closing unlocks
}

// Root is the folder of go.work, in or above the working directory.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("found no go.work in %s or above it: start inside a clone of Tierflow", start)
		}
	}
}

// DefaultCache returns a folder for the programs of the clone at root. It is in Go's build cache, which is always writable.
func DefaultCache(ctx context.Context, root string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOCACHE")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOCACHE: %w", err)
	}
	clone := strings.ReplaceAll(strings.Trim(root, "/"), "/", "-")
	return filepath.Join(strings.TrimSpace(string(out)), "tierflow", clone), nil
}
