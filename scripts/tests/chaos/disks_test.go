package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

const (
	diskSize   = 1 << 30 // a sparse file
	diskInodes = 2048    // few, so that others can take them all
	diskPrefix = "tierflow-chaos-"
)

// disk is a file system on a loop device with the folders of some tiers. It is mounted twice. Faults change the mount that
// the services see; the other one stays as it is, so that the test can always mend the disk.
type disk struct {
	w      *world
	levels []string
	base   string         // the mount that stays
	seen   string         // the mount that services see
	undo   []func() error // mends the disk, the last one first
}

// makeDisks places the tiers on two disks: one for bronze and silver, between which a move is a link, and one for gold. On a
// machine that cannot mount, gold is on another file system where there is one.
func (w *world) makeDisks(o *stack.Options) {
	w.t.Helper()
	images := o.Dir
	if folder, ok := stack.SecondFilesystem(o.Dir, diskSize); ok {
		images = folder
		o.Tiers["gold"] = filepath.Join(folder, "gold")
		w.t.Cleanup(func() { os.RemoveAll(folder) })
	}
	for _, levels := range [][]string{{"bronze", "silver"}, {"gold"}} {
		d, err := w.newDisk(images, filepath.Join(o.Dir, "disk-"+levels[0]), levels)
		if err != nil {
			leaveOut("faults of disks: " + err.Error())
			w.disks = nil
			return
		}
		w.disks = append(w.disks, d)
	}
	if images != o.Dir {
		w.must("remove a folder that nothing needs", os.RemoveAll(images))
	}
	for _, d := range w.disks {
		for _, level := range d.levels {
			o.Tiers[level] = filepath.Join(d.seen, level)
		}
	}
}

func (w *world) newDisk(images, dir string, levels []string) (*disk, error) {
	d := &disk{w: w, levels: levels, base: filepath.Join(dir, "base"), seen: filepath.Join(dir, "seen")}
	if err := errors.Join(os.MkdirAll(d.base, 0o755), os.MkdirAll(d.seen, 0o755)); err != nil {
		return nil, err
	}
	// The loop device keeps the image. Without a name it goes away with the device, whatever happens.
	image := filepath.Join(images, fmt.Sprintf("%s%d-%s", diskPrefix, os.Getpid(), levels[0]))
	defer os.Remove(image)
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, diskSize)); err != nil {
		return nil, err
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-N", strconv.Itoa(diskInodes), "-E", "nodiscard", image},
		{"mount", "-o", "loop", image, d.base},
		{"mount", "--bind", d.base, d.seen},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", command, err, out)
		}
		if command[0] == "mount" {
			at := command[len(command)-1]
			w.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
		}
	}
	return d, nil
}

func (d *disk) String() string { return strings.Join(d.levels, " and ") }

// mend takes every fault of the disk away.
func (d *disk) mend() {
	for len(d.undo) > 0 {
		last := len(d.undo) - 1
		if err := d.undo[last](); err != nil {
			d.w.t.Errorf("mend the disk of %s: %v", d, err)
		}
		d.undo = d.undo[:last]
	}
}

func (w *world) mendDisks() {
	for _, d := range w.disks {
		d.mend()
	}
}

// diskFaults are the faults of disks. Each hits one disk or both, mostly for a moment, and sometimes for so long that the
// services know of it.
func (w *world) diskFaults() []fault {
	if len(w.disks) == 0 {
		return nil
	}
	kind := func(name string, begin func(*disk, *rand.Rand) error) fault {
		return fault{name, theDisks, false, func(_ context.Context, w *world, r *rand.Rand) error {
			hit := []*disk{w.disks[r.IntN(len(w.disks))]}
			if r.IntN(4) == 0 {
				hit = w.disks
			}
			defer w.mendDisks()
			for _, d := range hit {
				if err := begin(d, r); err != nil {
					return err
				}
			}
			most := 2 * time.Second
			if r.IntN(4) == 0 {
				most = 10 * time.Second
			}
			last(r, most)
			w.note("the disks are mended")
			return nil
		}}
	}
	return []fault{
		kind("a disk hangs", (*disk).freeze),
		kind("a disk is read-only", (*disk).readOnly),
		kind("a tier is away", (*disk).takeAway),
		kind("others fill a disk", (*disk).fill),
		kind("others take the inodes of a disk", (*disk).takeInodes),
	}
}

// freeze makes every write to the disk hang. A process of its own thaws the disk, also when the test is killed.
func (d *disk) freeze(*rand.Rand) error {
	d.w.note("freeze the disk of %s", d)
	cmd := exec.Command("sh", "-c", `fsfreeze -f "$0" && echo frozen && { read -r _; fsfreeze -u "$0"; }`, d.base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C does not reach it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.undo = append(d.undo, func() error {
		in.Close()
		return cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "frozen\n" {
		return fmt.Errorf("fsfreeze: %q, %w", line, err)
	}
	return nil
}

// readOnly makes the whole file system read-only, or only the mount that services see. While somebody writes, neither is
// possible.
func (d *disk) readOnly(r *rand.Rand) error {
	at, flags := d.seen, uintptr(unix.MS_REMOUNT|unix.MS_BIND)
	if r.IntN(2) == 0 {
		at, flags = d.base, unix.MS_REMOUNT
	}
	d.w.note("make the disk of %s read-only, %s", d, filepath.Base(at))
	ctx, cancel := context.WithTimeout(d.w.t.Context(), patience)
	defer cancel()
	d.undo = append(d.undo, func() error { return unix.Mount("", at, "", flags, "") })
	return eventually(ctx, func() error { return unix.Mount("", at, "", flags|unix.MS_RDONLY, "") })
}

// takeAway hides tiers: the folder of one has another name, or an empty file system covers it, or nothing is mounted.
func (d *disk) takeAway(r *rand.Rand) error {
	level := d.levels[r.IntN(len(d.levels))]
	folder := filepath.Join(d.seen, level)
	hide := func(hide, show func() error, empty string, levels ...string) error {
		d.w.presence.change(levels)
		d.undo = append(d.undo, func() error {
			defer d.w.presence.change(levels)
			left, err := os.ReadDir(empty)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("%s was away, and somebody has written %s in its place", empty, left[0].Name())
			}
			if errors.Is(err, os.ErrNotExist) {
				err = nil
			}
			return errors.Join(err, show())
		})
		return hide()
	}
	switch r.IntN(3) {
	case 0:
		d.w.note("rename the folder of %s", level)
		away := folder + ".away"
		return hide(func() error { return os.Rename(folder, away) }, func() error { return os.Rename(away, folder) }, folder, level)
	case 1:
		d.w.note("mount another disk on %s", level)
		return hide(func() error { return unix.Mount("none", folder, "tmpfs", 0, "size=8m") },
			func() error { return unix.Unmount(folder, unix.MNT_DETACH) }, folder, level)
	}
	d.w.note("unmount the disk of %s", d)
	return hide(func() error { return unix.Unmount(d.seen, unix.MNT_DETACH) },
		func() error { return unix.Mount(d.base, d.seen, "", unix.MS_BIND, "") }, d.seen, d.levels...)
}

// foreign is a folder outside all tiers.
func (d *disk) foreign() (string, error) {
	folder := filepath.Join(d.base, "foreign")
	d.undo = append(d.undo, func() error { return os.RemoveAll(folder) })
	return folder, os.MkdirAll(folder, 0o755)
}

// fill leaves no block free.
func (d *disk) fill(*rand.Rand) error {
	d.w.note("fill the disk of %s", d)
	folder, err := d.foreign()
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(folder, "file"))
	if err != nil {
		return err
	}
	defer f.Close()
	at := int64(0)
	for size := int64(diskSize); size >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, size)
		switch {
		case err == nil:
			at += size
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		default:
			return err
		}
	}
	return nil
}

// takeInodes leaves no inode free.
func (d *disk) takeInodes(*rand.Rand) error {
	d.w.note("take the inodes of the disk of %s", d)
	folder, err := d.foreign()
	for n := 0; err == nil; n++ {
		err = os.WriteFile(filepath.Join(folder, strconv.Itoa(n)), nil, 0o600)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return err
}

// presence tells a reader which tiers are away.
type presence struct {
	mu      sync.Mutex
	changes map[string]int // by level; odd while the tier is away
}

func (p *presence) change(levels []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range levels {
		p.changes[l]++
	}
}

// of returns whether a tier is there, and a number that changes whenever the tier goes away or comes back.
func (p *presence) of(level string) (there bool, changes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changes[level]%2 == 0, p.changes[level]
}
