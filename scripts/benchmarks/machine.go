package benchmarks

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Machine describes the machine that the figures come from.
type Machine struct {
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	MemoryGiB  float64           `json:"memory_gib"`
	Kernel     string            `json:"kernel"`
	Filesystem string            `json:"filesystem"` // of the measured folder
	Go         string            `json:"go"`
	Programs   map[string]string `json:"programs"` // versions of the installed ones
}

func (m Machine) String() string {
	s := fmt.Sprintf("%d cores of %s, %.0f GiB, Linux %s, %s, %s", m.Cores, m.CPU, m.MemoryGiB, m.Kernel, m.Filesystem, m.Go)
	for _, name := range versioned {
		if v := m.Programs[name]; v != "" {
			s += ", " + name + " " + v
		}
	}
	return s
}

// versioned are the programs whose versions influence the figures.
var versioned = []string{"redis-server", "mysqld", "mariadbd", "wrk", "rsync", "rclone"}

var version = regexp.MustCompile(`(?:[vV =]|debian/)(\d+\.\d+(\.\d+)?\S*)`)

// thisMachine describes this machine. It leaves empty what it cannot find out.
func thisMachine(dir string) Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Programs: map[string]string{}}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = field(b, "model name")
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kib, err := strconv.ParseFloat(strings.TrimSuffix(field(b, "MemTotal"), " kB"), 64); err == nil {
			m.MemoryGiB = kib / (1 << 20)
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err == nil {
		m.Filesystem = filesystems[fs.Type]
	}
	if m.Filesystem == "ext4" && !journaled(dir) {
		m.Filesystem += " without a journal"
	}
	for _, name := range versioned {
		if path, err := exec.LookPath(name); err == nil {
			out, _ := exec.Command(path, "--version").CombinedOutput() // no check of the error: wrk exits with 1
			if found := version.FindSubmatch(out); found != nil {
				m.Programs[name] = string(found[1])
			}
		}
	}
	return m
}

var filesystems = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs", 0x794c7630: "overlayfs", 0x2fc12fc1: "zfs"}

// journaled reports whether an ext4 has a journal, and true when it cannot find out, because most have one. Without a
// journal a sync costs less. But for a minute or more after files are removed, the kernel inspects each freed inode before
// it makes a file. So all moves, ours and those of other programs, have another speed.
func journaled(dir string) bool {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return true
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return true
	}
	options, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(device) + "/options")
	return err != nil || bytes.Contains(options, []byte("\ndata="))
}

// field returns the value of the first line that begins with the name.
func field(b []byte, name string) string {
	for line := range bytes.Lines(b) {
		if before, after, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(before)) == name {
			return string(bytes.TrimSpace(after))
		}
	}
	return ""
}
