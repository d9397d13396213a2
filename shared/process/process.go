// Package process handles what every program needs from its start to its end: signals, exit codes, its version, when garbage
// is collected, and the command line of a service. No other package handles signals.
package process

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// Exit codes of every program, besides those that a verb defines.
const (
	OK       = 0
	Failed   = 1
	Settings = 2 // wrong settings or arguments, or a check that could not run
)

// Version and Revision are set by the linker (-X) in released builds.
var Version, Revision = "dev", ""

// Run calls f with a context that ends at the first SIGTERM or SIGINT, and returns f's exit code. At a second signal the
// process exits at once with Failed. That is as safe as any crash.
func Run(f func(ctx context.Context) int) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(os.Stderr, "second signal: stopping now")
		os.Exit(Failed)
	}()
	return f(ctx)
}

// VersionText is what the verb `version` prints.
func VersionText(program string) string {
	rev := Revision
	if info, ok := debug.ReadBuildInfo(); ok && rev == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				rev = s.Value
			}
		}
	}
	if rev == "" {
		rev = "unknown"
	}
	return fmt.Sprintf("%s %s (revision %s)", program, Version, rev)
}
