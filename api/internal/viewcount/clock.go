package viewcount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Reading is what a machine knows of the time.
type Reading struct {
	Wall time.Time
	Boot string        // differs after every start of the machine
	Up   time.Duration // since that start; goes on evenly, also while the machine sleeps
}

// ReadMachine reads the clocks of this machine.
func ReadMachine() Reading {
	r := Reading{Wall: time.Now()}
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err == nil { // it has no other error than a wrong address
		r.Up = time.Duration(info.Uptime) * time.Second
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one, the machine counts as never restarted
	r.Boot = strings.TrimSpace(string(boot))
	return r
}

// clockFile is the file of the last reading, in the folder of the log.
const clockFile = "clock"

const (
	// minTolerance is by how much the clock may always be set.
	minTolerance = time.Minute
	// settled is how long a machine must be up until its clock counts as corrected by a time server.
	settled = 15 * time.Minute
	// off is how long a machine is off without question.
	off = 24 * time.Hour
)

// Clock refuses a clock that was set. Every count is one of the views of some span before now: with a wrong now, all counts
// are wrong, and the log that they could be counted from again is removed.
//
// The last reading is in a file, so that a restart changes nothing. Only one goroutine may use a Clock.
type Clock struct {
	path      string
	window    time.Duration
	tolerance time.Duration
	read      func() Reading
	last      *Reading // nil before the first look
}

// NewClock makes the Clock for a folder of the log and a window of this length. read is ReadMachine but in tests.
func NewClock(dir string, window time.Duration, read func() Reading) *Clock {
	return &Clock{path: filepath.Join(dir, clockFile), window: window, tolerance: max(minTolerance, window/periods/4), read: read}
}

// Now returns the time. The error says by how much the clock was set. It goes away when the clock is right again, or when
// somebody removes the file of the last reading; then accepted is true, and counts that were made before may be of the future.
func (c *Clock) Now() (now time.Time, accepted bool, err error) {
	last, err := c.load()
	if err != nil {
		return time.Time{}, false, err
	}
	r := c.read()
	if last != nil {
		if err := c.check(*last, r); err != nil {
			return time.Time{}, false, err
		}
	}
	accepted = last == nil && c.last != nil
	c.last = &r
	text := fmt.Sprintf("%d %d %s\n", r.Wall.UnixMilli(), r.Up.Milliseconds(), r.Boot)
	if err := os.WriteFile(c.path+".new", []byte(text), 0o600); err != nil {
		return time.Time{}, false, err
	}
	return r.Wall, accepted, os.Rename(c.path+".new", c.path)
}

// load reads the file; nil where there is none.
func (c *Clock) load() (*Reading, error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(c.path)) // the folder must be there
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	var wall, up int64
	var boot string
	if n, _ := fmt.Sscan(string(b), &wall, &up, &boot); n < 2 {
		return nil, nil // a crash of the machine has emptied it
	}
	return &Reading{time.UnixMilli(wall), boot, time.Duration(up) * time.Millisecond}, nil
}

func (c *Clock) check(last, r Reading) error {
	passed := r.Wall.Sub(last.Wall)
	set := passed // after a restart of the machine, nobody knows how long it was off
	if r.Boot == last.Boot {
		set -= r.Up - last.Up
	}
	switch {
	case set < -c.tolerance, set > c.tolerance && r.Boot == last.Boot:
	case set > max(c.window, off) && r.Boot != last.Boot && r.Up < settled:
		return fmt.Errorf("the machine was off for %v, or its clock is wrong: no count is posted until it has been up for %v", passed, settled)
	default:
		return nil
	}
	return fmt.Errorf("the clock was set by %v: no count is posted, and no log is removed, until it is right again "+
		"(if it is right now, remove %s)", set.Round(time.Second), c.path)
}
