package service

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal: what is written to out comes to screen.
func terminal(t *testing.T) (out *os.File, screen io.Reader) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	out, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out, master
}

func TestABarOnATerminalShowsStageCountAndPercentage(t *testing.T) {
	out, screen := terminal(t)
	b := newBar(out)
	b.at("items", 250, 1000)
	b.clear()
	b.at("names on the tiers", 900, 900)
	fmt.Fprintln(out, "the end")
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "the end") {
		n, err := screen.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	for _, want := range []string{"items", "250/1000", "25%", "names on the tiers", "900/900"} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("%q is not in %q", want, seen.String())
		}
	}
}

func TestOutsideATerminalThereIsNoBar(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var buffer bytes.Buffer
	for _, out := range []io.Writer{f, &buffer} {
		b := newBar(out)
		b.at("items", 250, 1000)
		b.clear()
	}
	if text, err := os.ReadFile(path); err != nil || len(text) > 0 || buffer.Len() > 0 {
		t.Errorf("%q %q %v", text, buffer.String(), err)
	}
}
