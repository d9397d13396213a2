package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/viewcount"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/outage"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, variables and verbs, as kong fills them.
type arguments struct {
	URL        string `name:"url" env:"TIERFLOW_URL" default:"http://127.0.0.1:5000" help:"Address of the api."`
	APIKey     string `name:"api-key" env:"TIERFLOW_API_KEY" help:"An API key with all scopes. Other users can see arguments: better use a variable or a file."`
	APIKeyFile string `name:"api-key-file" env:"TIERFLOW_API_KEY_FILE" help:"A file that holds an API key."`
	Edge       string `name:"edge-url" env:"TIERFLOW_EDGE_URL" help:"The web server that visitors go to. Without one, or where its name does not resolve, the demo counts visitors itself."`
	Window     string `name:"view-window" env:"TIERFLOW_VIEW_WINDOW" default:"2m" help:"For how long a view counts, where the demo counts visitors itself. The favourite changes four times as often."`
	LogLevel   string `name:"log-level" env:"TIERFLOW_LOG_LEVEL" default:"info" help:"debug, info, warn or error."`
	LogFormat  string `name:"log-format" env:"TIERFLOW_LOG_FORMAT" default:"json" help:"json or console."`

	Serve   struct{} `cmd:"" default:"1" help:"Make samples and simulate visitors (the default)."`
	Version struct{} `cmd:"" help:"Print the version."`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var a arguments
	verb, err := settings.Parse("demo", "Registers sample items and simulates visitors.", &a, args)
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("demo"))
		return process.OK
	}
	var p settings.Problems
	window := p.Duration("TIERFLOW_VIEW_WINDOW", a.Window, time.Second)
	c := client.New(p.URL("TIERFLOW_URL", a.URL), p.Secret("TIERFLOW_API_KEY", a.APIKey, a.APIKeyFile))
	var edge *url.URL
	if a.Edge != "" {
		edge = p.URL("TIERFLOW_EDGE_URL", a.Edge)
	}
	log := logging.New("demo", p.OneOf("TIERFLOW_LOG_LEVEL", a.LogLevel, logging.Levels), p.OneOf("TIERFLOW_LOG_FORMAT", a.LogFormat, logging.Formats))
	if err := p.Err(); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return process.Settings
	}
	if err := serve(ctx, c, edge, window, log); err != nil && ctx.Err() == nil {
		log.Error("stopped", zap.Error(err))
		return process.Failed
	}
	return process.OK
}

// serve makes the samples and then simulates visitors until ctx ends:
//
//	visitors ──▶ edge ──log──▶ counter ──▶ api      with an edge
//	         ──▶ viewcount ──────────────▶ api      without one
func serve(ctx context.Context, c *client.Client, edge *url.URL, window time.Duration, log *zap.Logger) error {
	samples, err := makeSamples(ctx, c, log)
	if err != nil {
		return err
	}
	if edge != nil {
		if _, err := net.DefaultResolver.LookupHost(ctx, edge.Hostname()); err != nil {
			log.Info("no edge: the demo counts visitors itself", zap.Error(err))
			edge = nil
		}
	}
	crowd := newCrowd(samples)
	log.Info("visitors start", zap.Int("samples", len(samples)), zap.Bool("edge", edge != nil))
	changes := time.NewTicker(window / 4)
	defer changes.Stop()
	visits := time.NewTicker(time.Second / visitsPerSecond)
	defer visits.Stop()
	posts := time.NewTicker(postInterval)
	defer posts.Stop()
	counts := viewcount.NewWindow(window)
	counts.Slide(time.Now())
	poster := viewcount.Poster{API: c}
	posting := outage.New("posts of counts", log)
	browsing := outage.Say("visitors cannot read files now", "visitors read files again", log)
	browsers := make(chan visit, 1)
	if edge != nil {
		for range browserCount {
			go browse(ctx, edge, browsers, browsing)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.C:
			log.Info("there is a new favourite", zap.Stringer("favourite", crowd.change()))
		case <-visits.C:
			v := crowd.next()
			if edge == nil {
				counts.See(time.Now(), v.id, []byte(v.viewer))
				break
			}
			select {
			case browsers <- v:
			default: // all browsers are busy: this visit is dropped
			}
		case now := <-posts.C:
			counts.Slide(now)
			_, _, err := poster.Post(ctx, counts)
			posting.Note(err)
		}
	}
}
