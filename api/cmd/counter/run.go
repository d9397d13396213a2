package main

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/viewcount"
	"github.com/tierflow/tierflow/shared/admin"
	"github.com/tierflow/tierflow/shared/logging"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, variables and verbs, as kong fills them.
type arguments struct {
	URL         string `name:"url" env:"TIERFLOW_URL" default:"http://127.0.0.1:5000" help:"Address of the api."`
	APIKey      string `name:"api-key" env:"TIERFLOW_API_KEY" help:"An API key with the scope views. Other users can see arguments: better use a variable or a file."`
	APIKeyFile  string `name:"api-key-file" env:"TIERFLOW_API_KEY_FILE" help:"A file that holds an API key."`
	ViewLog     string `name:"view-log" env:"TIERFLOW_VIEW_LOG" default:"/var/log/tierflow" help:"The folder in which the web server logs views. The counter keeps its counts there too."`
	Window      string `name:"view-window" env:"TIERFLOW_VIEW_WINDOW" default:"24h" help:"For how long a view counts. The window slides in 24 steps."`
	Interval    string `name:"view-interval" env:"TIERFLOW_VIEW_INTERVAL" default:"10s" help:"How often changed counts are posted."`
	AdminListen string `name:"admin-listen" env:"TIERFLOW_ADMIN_LISTEN" default:"127.0.0.1:5003" help:"Address of health and metrics."`
	LogLevel    string `name:"log-level" env:"TIERFLOW_LOG_LEVEL" default:"info" help:"debug, info, warn or error."`
	LogFormat   string `name:"log-format" env:"TIERFLOW_LOG_FORMAT" default:"json" help:"json or console."`

	Serve       struct{} `cmd:"" default:"1" help:"Count views and post the counts (the default)."`
	Healthcheck struct{} `cmd:"" help:"Ask a running counter whether it is ready; exit code 0 or 1."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

// values are the checked arguments.
type values struct {
	poster      viewcount.Poster
	dir         string
	window      time.Duration
	interval    time.Duration
	adminListen string
	log         *zap.Logger
	read        func() viewcount.Reading // of the clock
}

func (a arguments) check() (values, error) {
	var p settings.Problems
	v := values{
		read:        viewcount.ReadMachine,
		dir:         a.ViewLog,
		window:      p.Duration("TIERFLOW_VIEW_WINDOW", a.Window, time.Second),
		interval:    p.Duration("TIERFLOW_VIEW_INTERVAL", a.Interval, 100*time.Millisecond),
		adminListen: p.Address("TIERFLOW_ADMIN_LISTEN", a.AdminListen),
		log: logging.New("counter", p.OneOf("TIERFLOW_LOG_LEVEL", a.LogLevel, logging.Levels),
			p.OneOf("TIERFLOW_LOG_FORMAT", a.LogFormat, logging.Formats)),
	}
	v.poster = viewcount.Poster{API: client.New(p.URL("TIERFLOW_URL", a.URL), p.Secret("TIERFLOW_API_KEY", a.APIKey, a.APIKeyFile))}
	return v, p.Err()
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var a arguments
	verb, err := settings.Parse("counter", "Counts views from the log of a web server and posts the counts to the api.", &a, args)
	if err != nil {
		fmt.Fprintln(stderr, "counter:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("counter"))
		return process.OK
	}
	v, err := a.check()
	if err != nil {
		fmt.Fprintln(stderr, "counter:", err)
		return process.Settings
	}
	if verb == "healthcheck" {
		if err := admin.Probe(ctx, v.adminListen); err != nil {
			fmt.Fprintln(stderr, "counter:", err)
			return process.Failed
		}
		return process.OK
	}
	return serve(ctx, v)
}

// latest is the newest error of one job, nil where the job succeeded.
type latest struct{ err atomic.Pointer[error] }

func (l *latest) set(err error) { l.err.Store(&err) }

func (l *latest) get(context.Context) error {
	if err := l.err.Load(); err != nil {
		return *err
	}
	return nil
}

// serve counts until ctx ends:
//
//	views-*.log ──▶ viewcount.Log ──▶ viewcount.Window ──▶ viewcount.Poster ──▶ POST /v1/views
//	*.counts ◀──▶─────────┘  ▲                                    │
//	                         └────── logs that are counted ◀──────┘
//
// All its state is in the folder, so it has nothing to do at its end.
func serve(ctx context.Context, v values) int {
	var reading, posting latest
	ready := admin.NewReady(v.log, admin.Check{Name: "view-log", Do: reading.get}, admin.Check{Name: "api", Do: posting.get})
	counts := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "tierflow", Subsystem: "counter", Name: "counts_total",
		Help: "Counts that were posted, by outcome: told (the api accepted it) or refused (for good, such as those of unknown items)."}, []string{"outcome"})
	ignored := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "tierflow", Subsystem: "counter", Name: "ignored_views",
		Help: "Lines of the log since the start that were not counted, by reason: malformed, no-room."}, []string{"reason"})
	reg := admin.NewRegistry()
	reg.MustRegister(counts, ignored)
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	waitAdmin, err := admin.Serve(adminCtx, v.adminListen, admin.Handler(ready, reg), v.log)
	if err != nil {
		v.log.Error("cannot start", zap.Error(err))
		return process.Failed
	}
	go ready.Run(adminCtx)
	v.log.Info("started", zap.String("view_log", v.dir), zap.Duration("window", v.window),
		zap.String("version", process.VersionText("counter")))

	clock := viewcount.NewClock(v.dir, v.window, v.read)
	var window *viewcount.Window
	var log *viewcount.Log // nil until the folder exists
	ticks := time.NewTicker(v.interval)
	defer ticks.Stop()
	for ctx.Err() == nil {
		now, accepted, err := clock.Now()
		if err == nil && (log == nil || accepted) {
			window = viewcount.NewWindow(v.window)
			log, err = viewcount.OpenLog(v.dir, window, now)
		}
		if err == nil {
			err = log.Read(now)
		}
		reading.set(err)
		if err == nil { // after an error the counts are too low, and items would be demoted by them
			accepted, refused, err := v.poster.Post(ctx, window)
			posting.set(err)
			counts.WithLabelValues("told").Add(float64(accepted))
			counts.WithLabelValues("refused").Add(float64(refused))
			if err == nil {
				reading.set(log.Tidy())
			}
			ignored.WithLabelValues("malformed").Set(float64(log.Malformed))
			ignored.WithLabelValues("no-room").Set(float64(window.NoRoom))
		}
		select {
		case <-ctx.Done():
		case <-ticks.C:
		}
	}
	v.log.Info("stopped")
	stopAdmin()
	waitAdmin()
	return process.OK
}
