package main

import (
	"fmt"
	"io"
	"time"
)

// screen writes what the user sees.
type screen struct {
	io.Writer
	colour bool
}

// heading writes the title of a part.
func (s screen) heading(text string) { fmt.Fprintf(s, "\n%s\n", s.paint("1", text)) }

// line writes a line after a word that names its subject. The word is "" if the line continues the one above.
func (s screen) line(word, format string, args ...any) {
	fmt.Fprintf(s, "  %s  %s\n", s.paint("2", fmt.Sprintf("%-10s", word)), fmt.Sprintf(format, args...))
}

// command writes a command that the user could type.
func (s screen) command(text string) {
	fmt.Fprintf(s, "  %s %s\n", s.paint("2", "$"), s.paint("36", text))
}

// answer writes the answer to a command.
func (s screen) answer(text string) { fmt.Fprintf(s, "  %s\n", text) }

// move writes a committed relocation.
func (s screen) move(m move) {
	how := ""
	if m.method != "" {
		how = fmt.Sprintf("%9s  %s in %s", size(m.bytes), map[string]string{"link": "linked", "clone": "cloned", "copy": "copied"}[m.method],
			short(m.took))
	}
	fmt.Fprintf(s, "  %s  %-24s %s\n", s.paint("32", fmt.Sprintf("%6s ← %-6s", m.to, m.from)), m.filename, how)
}

func (s screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// size formats a number of bytes with a unit.
func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// short formats a duration with few digits.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
}
