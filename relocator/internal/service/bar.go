package service

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows the progress of a long run on a terminal, with its rate and the time that is left. Anywhere else it shows
// nothing.
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

// at moves the bar. A new stage begins a new bar.
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
	_ = b.shown.Set64(done) // a bar that cannot be shown is no error
}

// clear makes room for a line of text. The next call of at shows the bar again.
func (b *bar) clear() {
	if b.shown != nil {
		_ = b.shown.Clear()
	}
}
