package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows on a terminal how far a long run is, with its rate and the time that is left. Anywhere else it shows nothing.
type bar struct {
	out   io.Writer // nil: no terminal
	stage string
	shown *progressbar.ProgressBar
}

func newBar(stderr io.Writer) *bar {
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &bar{out: f}
	}
	return &bar{}
}

// at moves the bar; a new stage begins a new one.
func (b *bar) at(stage string, done, total int64) {
	if b.out == nil {
		return
	}
	if b.shown == nil || stage != b.stage {
		b.clear()
		b.stage = stage
		b.shown = progressbar.NewOptions64(total, progressbar.OptionSetWriter(b.out), progressbar.OptionSetDescription(stage),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetWidth(20))
	}
	if total != b.shown.GetMax64() {
		b.shown.ChangeMax64(total)
	}
	_ = b.shown.Set64(done) // what cannot be shown is not worth a word
}

// clear makes room for a line of text; the next move shows the bar again.
func (b *bar) clear() {
	if b.shown != nil {
		_ = b.shown.Clear()
	}
}
