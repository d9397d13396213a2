package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/testdisk"
)

// The kinds of disks. Each is a file system with the folders bronze and gold.
const (
	ext4       = "ext4"
	xfs        = "xfs"
	btrfs      = "btrfs"
	subvolumes = "btrfs with subvolumes" // bronze and gold are subvolumes: link and rename between them fail with EXDEV
)

var mkfs = map[string]struct {
	size    int64
	args    []string
	options string // of mount. Data that was not synced must not get to the disk during a test.
}{
	ext4:       {64 << 20, []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "commit=600"},
	xfs:        {300 << 20, []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, ""},
	btrfs:      {256 << 20, []string{"mkfs.btrfs", "-q"}, "commit=600"},
	subvolumes: {256 << 20, []string{"mkfs.btrfs", "-q"}, "commit=600"},
}

func fstype(kind string) string { return strings.Fields(kind)[0] }

// laboratory holds the images of disks on an XFS file system in memory. XFS can clone a file in one atomic step, even
// while it is written to.
type laboratory struct {
	dir    string // the folder of everything
	images string // the XFS file system, inside dir
	count  int
}

var lab *laboratory

func newLaboratory(dir string) (*laboratory, error) {
	// The mounts are in this process's own namespace. The kernel removes them when the process ends.
	if err := unix.Mount("tierflow", dir, "tmpfs", 0, "size=4g,mode=700"); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	l := &laboratory{dir: dir, images: filepath.Join(dir, "images")}
	for _, d := range []string{"images", "0", "1", "from", "to"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	host := filepath.Join(dir, "host")
	if err := errors.Join(os.WriteFile(host, nil, 0o600), os.Truncate(host, 8<<30)); err != nil {
		return nil, err
	}
	if err := testdisk.Command("mkfs.xfs", "-q", "-m", "reflink=1", host); err != nil {
		return nil, err
	}
	if _, err := attach(host, l.images, xfs, "discard"); err != nil {
		return nil, err
	}
	for kind := range mkfs {
		if err := l.template(kind); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// template makes the image of an empty disk.
func (l *laboratory) template(kind string) error {
	how, image := mkfs[kind], l.blank(kind)
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, how.size)); err != nil {
		return err
	}
	if err := testdisk.Command(append(how.args, image)...); err != nil {
		return err
	}
	d, err := attach(image, filepath.Join(l.dir, "0"), fstype(kind), how.options)
	if err != nil {
		return err
	}
	for _, name := range []string{"bronze", "gold"} {
		if kind == subvolumes {
			err = errors.Join(err, testdisk.Command("btrfs", "-q", "subvolume", "create", filepath.Join(d.at, name)))
		} else {
			err = errors.Join(err, os.Mkdir(filepath.Join(d.at, name), 0o755))
		}
	}
	return errors.Join(err, unmount(d.at))
}

// blank is the path of the image of an empty disk.
func (l *laboratory) blank(kind string) string {
	return filepath.Join(l.images, strings.ReplaceAll(kind, " ", "-"))
}

// copy clones an image in one step. The clone has what the disk has received so far. The caller removes it.
func (l *laboratory) copy(image string) (string, error) {
	l.count++
	name := filepath.Join(l.images, fmt.Sprintf("copy-%d", l.count))
	from, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer to.Close()
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		return "", fmt.Errorf("clone %s: %w", image, err)
	}
	return name, nil
}

// disk is a mounted image.
type disk struct {
	image string
	at    string
	stat  string // the path of the loop device's counters in /sys
}

// attach mounts an image through a loop device. The kernel frees the device after the unmount.
func attach(image, at, fstype, options string) (*disk, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no loop device is free: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if errors.Is(err, unix.EBUSY) { // another process was faster
			dev.Close()
			continue
		}
		if err == nil {
			err = unix.Mount(name, at, fstype, 0, options)
		}
		dev.Close()
		if err != nil {
			return nil, fmt.Errorf("mount %s as %s: %w", image, fstype, err)
		}
		return &disk{image: image, at: at, stat: fmt.Sprintf("/sys/block/loop%d/stat", n)}, nil
	}
}

// written returns counters that change whenever the disk receives something.
func (d *disk) written() (string, error) {
	p, err := os.ReadFile(d.stat)
	f := strings.Fields(string(p))
	if err != nil || len(f) < 14 {
		return "", errors.Join(err, fmt.Errorf("%s: %q", d.stat, p))
	}
	return strings.Join([]string{f[4], f[6], f[8], f[11], f[13]}, " "), nil // writes, sectors, in flight, discards
}

// From linux/btrfs.h.
const (
	btrfsStartSync = 0x80089418
	btrfsWaitSync  = 0x40089416
)

// commit makes the file system write its journal, as the fsync of another file does. That writes names and known
// lengths, but not the bytes in the page cache.
func (d *disk) commit(kind string) error {
	f, err := os.OpenFile(filepath.Join(d.at, "neighbour"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return err
	}
	if fstype(kind) != btrfs {
		return f.Sync()
	}
	// On btrfs an fsync writes only what concerns the one file. Only these ioctls commit a transaction.
	var transaction uint64
	for _, request := range []uintptr{btrfsStartSync, btrfsWaitSync} {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&transaction)))
		if e != 0 {
			return e
		}
	}
	return nil
}

func unmount(at string) error {
	if err := unix.Unmount(at, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}

// machine has the mounted disks of a route.
type machine struct {
	disks  []*disk
	mounts []string // in the order in which they were made
}

// boot mounts the images as the disks of the route.
func boot(r route, images []string) (*machine, error) {
	m := &machine{}
	for i, image := range images {
		d, err := attach(image, filepath.Join(lab.dir, fmt.Sprint(i)), fstype(r.disks[i]), mkfs[r.disks[i]].options)
		if err != nil {
			m.halt()
			return nil, err
		}
		m.disks, m.mounts = append(m.disks, d), append(m.mounts, d.at)
	}
	if r.bind {
		for name, folder := range map[string]string{"from": "0/bronze", "to": "0/gold"} {
			at := filepath.Join(lab.dir, name)
			if err := unix.Mount(filepath.Join(lab.dir, folder), at, "", unix.MS_BIND, ""); err != nil {
				m.halt()
				return nil, fmt.Errorf("bind %s: %w", folder, err)
			}
			m.mounts = append(m.mounts, at)
		}
	}
	return m, nil
}

// halt unmounts everything. A second call does nothing.
func (m *machine) halt() {
	for i := len(m.mounts) - 1; i >= 0; i-- {
		if err := unmount(m.mounts[i]); err != nil {
			panic(err) // all later tests would use the wrong disks
		}
	}
	m.mounts = nil
}

// TestMain runs the tests in a private mount namespace. When the process ends, for whatever reason, the kernel removes its
// mounts and loop devices.
func TestMain(m *testing.M) {
	const missing = "the tests of power cuts need root with the right to mount, loop devices, and the packages xfsprogs, " +
		"btrfs-progs and e2fsprogs (apt-get install xfsprogs btrfs-progs e2fsprogs)"
	if os.Getenv("TIERFLOW_TEST_NO_LOOP_DEVICES") == "1" {
		fmt.Fprintf(os.Stderr, "\n!!! TIERFLOW_TEST_NO_LOOP_DEVICES=1: NOT ONE POWER CUT WAS TESTED. %s.\n\n", missing)
		return
	}
	code, err := 0, error(nil)
	if dir := os.Getenv("TIERFLOW_TEST_POWERCUT_DIR"); dir == "" {
		code, err = inNamespace()
	} else if lab, err = newLaboratory(dir); err == nil {
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s; TIERFLOW_TEST_NO_LOOP_DEVICES=1 leaves them out, which is no test\n", err, missing)
		code = 1
	}
	os.Exit(code)
}
