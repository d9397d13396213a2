package process

import (
	"context"
	"fmt"
	"io"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/settings"
)

// Verb does what one word of a command line says. It returns the exit code.
type Verb func() int

// Service is the command line of a service: what it has besides serving, which is what it does without a verb.
type Service struct {
	Name    string
	Purpose string // a sentence for --help
	// CommandLine is a pointer to the struct of settings and verbs that kong fills. Its verbs have healthcheck and version,
	// which Main does.
	CommandLine any
	// Verbs are those that need no settings. One of them may be healthcheck.
	Verbs map[string]Verb
	// Check checks the settings. Main calls it once, after the command line is parsed.
	Check func() (Checked, error)
}

// Checked is a service with right settings. Close may be nil.
type Checked struct {
	settings.CommonValues
	AdminListen string // the address that healthcheck asks
	WorkerID    string // for the log; "" where the service has none
	Verbs       map[string]Verb
	Serve       func(ctx context.Context, log *zap.Logger) error // until ctx ends; an error says why it cannot serve
	Close       func()
}

// Main parses the command line, runs the verb that it names, and returns the exit code.
func (s Service) Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return code
	}
	verb, err := settings.Parse(s.Name, s.Purpose, s.CommandLine, args)
	if err != nil {
		return fail(Settings, err)
	}
	if verb == "version" {
		fmt.Fprintln(stdout, VersionText(s.Name))
		return OK
	}
	if do, ok := s.Verbs[verb]; ok {
		return do()
	}
	c, err := s.Check()
	if err != nil {
		return fail(Settings, err)
	}
	if c.Close != nil {
		defer c.Close()
	}
	if verb == "healthcheck" {
		if err := admin.Probe(ctx, c.AdminListen); err != nil {
			return fail(Failed, err)
		}
		return OK
	}
	if do, ok := c.Verbs[verb]; ok {
		return do()
	}
	CollectLate(ctx)
	log := logging.New(s.Name, c.LogLevel, c.LogFormat)
	if c.WorkerID != "" {
		log = log.With(zap.String("worker_id", c.WorkerID))
	}
	defer func() { _ = log.Sync() }()
	if err := c.Serve(ctx, log); err != nil {
		log.Error("cannot serve", zap.Error(err))
		return Failed
	}
	return OK
}
