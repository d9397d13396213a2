package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"

	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, variables and verbs, as kong fills them.
type arguments struct {
	URL        string `name:"url" env:"TIERFLOW_URL" default:"http://127.0.0.1:5000" help:"Where the api is."`
	APIKey     string `name:"api-key" env:"TIERFLOW_API_KEY" help:"An API key. Others may see it among the arguments: better a variable or a file."`
	APIKeyFile string `name:"api-key-file" env:"TIERFLOW_API_KEY_FILE" help:"A file that holds an API key."`
	JSON       bool   `name:"json" help:"Print the api's answers as they are."`

	List struct {
		Level    string `help:"Only of this level."`
		Filename string `help:"Only the content of exactly this name."`
		After    int64  `help:"Go on after this cid."`
		Limit    int    `default:"100" help:"So many at most, up to 1000."`
	} `cmd:"" help:"List contents."`
	Show     content `cmd:"" help:"Show a content: row, state, location."`
	Location content `cmd:"" help:"Print where a content's file is now."`
	History  struct {
		content
		Limit int `default:"100" help:"So many at most, up to 1000."`
	} `cmd:"" help:"List a content's relocations, newest first."`
	Register struct {
		content
		Filename string `arg:"" help:"Path of its file, relative to the tier's root."`
		Level    string `help:"Where its file lies; by default the level that starts at 0."`
	} `cmd:"" help:"Register a content."`
	Forget content `cmd:"" help:"Forget a content; its file stays."`
	Pin    struct {
		content
		Level string `arg:"" help:"Where it is to stay."`
	} `cmd:"" help:"Hold a content on a level, whatever its count."`
	Unpin content `cmd:"" help:"Let a pinned content go where its count calls for."`
	Post  struct {
		content
		Count int64 `arg:"" help:"Its view count now."`
	} `cmd:"" help:"Post a view count."`
	Levels    struct{} `cmd:"" help:"Show the levels."`
	SetLevels struct {
		File string `arg:"" help:"A file of levels, as levels --json prints them; - for standard input."`
	} `cmd:"" help:"Replace the levels as a whole."`
	Relocations struct {
		Watch bool `help:"Show them again every second, until interrupted."`
	} `cmd:"" help:"Show what is in flight."`
	Events struct{} `cmd:"" help:"Print what happens, until interrupted."`
	Dead   struct {
		After string `help:"Go on after this entry."`
		Limit int    `default:"100" help:"So many at most, up to 1000."`
	} `cmd:"" help:"List what failed for good."`
	Retry   entry    `cmd:"" help:"Give an entry of dead another life."`
	Drop    entry    `cmd:"" help:"Drop an entry of dead."`
	Pause   struct{} `cmd:"" help:"Stop relocations; views are accepted meanwhile."`
	Resume  struct{} `cmd:"" help:"Go on with relocations."`
	Version struct{} `cmd:"" help:"Print the version."`
}

type content struct {
	CID int64 `arg:"" name:"cid" help:"Number of the content."`
}

func (c content) path() string { return "/v1/contents/" + strconv.FormatInt(c.CID, 10) }

type entry struct {
	ID string `arg:"" name:"id" help:"Id of the entry."`
}

func (e entry) path() string { return "/v1/dead/" + url.PathEscape(e.ID) }

// run does one verb. Its exit code is 0, 1 where the api refused or cannot be reached, or 2 for wrong arguments.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var a arguments
	verb, err := settings.Parse("tierctl", "Operates Tierflow through its HTTP API.", &a, args)
	if err != nil {
		fmt.Fprintln(stderr, "tierctl:", err)
		return process.Settings
	}
	if verb == "version" {
		fmt.Fprintln(stdout, process.VersionText("tierctl"))
		return process.OK
	}
	var p settings.Problems
	c := &client{base: p.URL("TIERFLOW_URL", a.URL), key: p.Secret("TIERFLOW_API_KEY", a.APIKey, a.APIKeyFile)}
	if err := p.Err(); err != nil {
		fmt.Fprintln(stderr, "tierctl:", err)
		return process.Settings
	}
	v := view{out: stdout, json: a.JSON}
	if err := a.do(ctx, verb, c, v, stdin); err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "tierctl:", err)
		return process.Failed
	}
	return process.OK
}

func (a arguments) do(ctx context.Context, verb string, c *client, v view, stdin io.Reader) error {
	get := func(path string, query url.Values, show func(view, []byte) error) error {
		return c.show(ctx, http.MethodGet, path, query, nil, v, show)
	}
	send := func(method, path string, body any, show func(view, []byte) error) error {
		return c.show(ctx, method, path, nil, body, v, show)
	}
	switch verb {
	case "list":
		q := query("level", a.List.Level, "filename", a.List.Filename, "limit", strconv.Itoa(a.List.Limit))
		if a.List.After != 0 {
			q.Set("after", strconv.FormatInt(a.List.After, 10))
		}
		return get("/v1/contents", q, view.contents)
	case "show":
		return get(a.Show.path(), nil, view.content)
	case "location":
		return get(a.Location.path()+"/location", nil, view.location)
	case "history":
		return get(a.History.path()+"/history", query("limit", strconv.Itoa(a.History.Limit)), view.history)
	case "register":
		body := map[string]any{"cid": a.Register.CID, "filename": a.Register.Filename}
		if a.Register.Level != "" {
			body["level"] = a.Register.Level
		}
		return send(http.MethodPost, "/v1/contents", body, view.content)
	case "forget":
		return send(http.MethodDelete, a.Forget.path(), nil, view.done)
	case "pin":
		return send(http.MethodPut, a.Pin.path()+"/pin", map[string]string{"level": a.Pin.Level}, view.content)
	case "unpin":
		return send(http.MethodDelete, a.Unpin.path()+"/pin", nil, view.content)
	case "post":
		return send(http.MethodPost, "/v1/views", map[string]int64{"cid": a.Post.CID, "count": a.Post.Count}, view.accepted)
	case "levels":
		return get("/v1/levels", nil, view.levels)
	case "set-levels":
		levels, err := levelsOf(a.SetLevels.File, stdin)
		if err != nil {
			return err
		}
		return send(http.MethodPut, "/v1/levels", levels, view.levels)
	case "relocations":
		if a.Relocations.Watch {
			return c.watch(ctx, v)
		}
		return get("/v1/relocations", query("limit", "1000"), view.relocations)
	case "events":
		return c.events(ctx, v)
	case "dead":
		return get("/v1/dead", query("after", a.Dead.After, "limit", strconv.Itoa(a.Dead.Limit)), view.dead)
	case "retry":
		return send(http.MethodPost, a.Retry.path()+"/retry", nil, view.retried)
	case "drop":
		return send(http.MethodDelete, a.Drop.path(), nil, view.done)
	case "pause", "resume":
		return send(http.MethodPost, "/v1/"+verb, nil, view.paused)
	}
	return errors.New("there is no verb " + verb)
}

// query makes a query of names and values, without those that are empty.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// levelsOf reads what is to be sent as levels.
func levelsOf(file string, stdin io.Reader) (raw, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}
