package benchmarks

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// cpuTime returns the CPU time that a process has used so far, to 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, which may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	const tick = time.Second / 100 // USER_HZ, for every program on Linux
	return time.Duration(ticks) * tick, nil
}

// peakMemory returns the most resident memory that a process has had, in MiB.
func peakMemory(pid int) (float64, error) { return memory(pid, "VmHWM") }

// residentMemory returns the resident memory that a process has now, in MiB.
func residentMemory(pid int) (float64, error) { return memory(pid, "VmRSS") }

func memory(pid int, name string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseFloat(strings.TrimSuffix(field(b, name), " kB"), 64)
	return kib / 1024, err
}

// meter measures the CPU time that programs use during a measurement.
type meter struct {
	pids  map[string]int // by program
	begin map[string]time.Duration
}

func startMeter(pids map[string]int) (*meter, error) {
	m := &meter{pids: pids}
	var err error
	m.begin, err = m.read()
	return m, err
}

func (m *meter) read() (map[string]time.Duration, error) {
	now := map[string]time.Duration{}
	for program, pid := range m.pids {
		used, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		now[program] = used
	}
	return now, nil
}

// used returns the CPU time that each program has used since the start.
func (m *meter) used() (map[string]time.Duration, error) {
	now, err := m.read()
	for program := range now {
		now[program] -= m.begin[program]
	}
	return now, err
}
