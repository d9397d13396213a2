package main

import (
	"fmt"
	"io"
	"time"
)

// screen is where the user looks.
type screen struct {
	io.Writer
	colour bool
}

// heading begins a part.
func (s screen) heading(text string) { fmt.Fprintf(s, "\n%s\n", s.paint("1", text)) }

// line has a word that says what it is about, or none where it goes on with the line above.
func (s screen) line(word, format string, args ...any) {
	fmt.Fprintf(s, "  %s  %s\n", s.paint("2", fmt.Sprintf("%-10s", word)), fmt.Sprintf(format, args...))
}

// command is what a person could type.
func (s screen) command(text string) {
	fmt.Fprintf(s, "  %s %s\n", s.paint("2", "$"), s.paint("36", text))
}

// answer is what a command brought.
func (s screen) answer(text string) { fmt.Fprintf(s, "  %s\n", text) }

// move is a relocation that was committed.
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

// size writes bytes as a person reads them.
func size(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// short writes a duration with as many digits as mean something.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
}
