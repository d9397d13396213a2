package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/process"
	"github.com/tierflow/tierflow/shared/settings"
)

// arguments are the flags, variables and verbs, as kong fills them.
type arguments struct {
	URL        string `name:"url" env:"TIERFLOW_URL" default:"http://127.0.0.1:5000" help:"Address of the api."`
	APIKey     string `name:"api-key" env:"TIERFLOW_API_KEY" help:"An API key. Other users can see arguments: better use a variable or a file."`
	APIKeyFile string `name:"api-key-file" env:"TIERFLOW_API_KEY_FILE" help:"A file that holds an API key."`
	JSON       bool   `name:"json" help:"Print the answers of the api as they are."`

	List struct {
		Level    string `help:"Only items of this level."`
		Filename string `help:"Only the item with exactly this filename."`
		After    int64  `help:"Continue after this cid."`
		Limit    int    `default:"100" help:"At most so many, up to 1000."`
	} `cmd:"" help:"List items."`
	Show     itemArg `cmd:"" help:"Show an item: row, state, location."`
	Explain  itemArg `cmd:"" help:"Say where an item is, why, and when that changes."`
	Location itemArg `cmd:"" help:"Print where the file of an item is now."`
	History  struct {
		itemArg
		Before int64 `help:"Continue before this move."`
		Limit  int   `default:"100" help:"At most so many, up to 1000."`
	} `cmd:"" help:"List the moves of an item, newest first."`
	Register struct {
		itemArg
		Filename string `arg:"" help:"Path of its file, relative to the root of the tier."`
		Level    string `help:"Where its file is. The default is the level that starts at 0."`
	} `cmd:"" help:"Register an item."`
	Forget itemArg `cmd:"" help:"Forget an item. Its file stays."`
	Pin    struct {
		itemArg
		Level string `arg:"" help:"The level to hold the item on."`
		Until string `help:"When the pin ends by itself, such as 2026-12-31T12:00:00Z. The default is never."`
	} `cmd:"" help:"Hold an item on a level, whatever its count."`
	Unpin itemArg `cmd:"" help:"Let a pinned item follow its count again."`
	Post  struct {
		itemArg
		Count int64 `arg:"" help:"Its view count now."`
	} `cmd:"" help:"Post a view event."`
	Levels    struct{} `cmd:"" help:"Show the levels."`
	SetLevels struct {
		File string `arg:"" help:"A file of levels, as levels --json prints them, or - for standard input."`
	} `cmd:"" help:"Replace all levels."`
	Plan struct {
		File string `arg:"" help:"A file of levels, as levels --json prints them, or - for standard input."`
	} `cmd:"" help:"Show what levels would move. It changes nothing."`
	Status      struct{} `cmd:"" help:"Show how everything is, and what waits for a human. Exits with 1 when something does."`
	Relocations struct {
		Watch bool   `help:"Show them again every second, until interrupted."`
		After string `help:"Continue after this entry."`
		Limit int    `default:"1000" help:"At most so many, up to 1000."`
	} `cmd:"" help:"Show what is in flight."`
	Waiting struct {
		CID   int64 `help:"Only entries of this item."`
		Limit int   `default:"100" help:"At most so many, up to 1000."`
	} `cmd:"" help:"Show what waits at the workers, and why."`
	Events struct{} `cmd:"" help:"Print events until interrupted."`
	Dead   struct {
		After string `help:"Continue after this entry."`
		Limit int    `default:"100" help:"At most so many, up to 1000."`
	} `cmd:"" help:"List dead letters: what failed for good."`
	Retry   deadArg  `cmd:"" help:"Append a dead letter to its stream again."`
	Drop    deadArg  `cmd:"" help:"Drop a dead letter."`
	Pause   struct{} `cmd:"" help:"Stop relocations. View events are still accepted."`
	Resume  struct{} `cmd:"" help:"Resume relocations."`
	Version struct{} `cmd:"" help:"Print the version."`
}

type itemArg struct {
	CID int64 `arg:"" name:"cid" help:"The cid of the item."`
}

func (a itemArg) id() item.ID { return item.ID(a.CID) }

type deadArg struct {
	ID string `arg:"" name:"id" help:"The id of the dead letter."`
}

// run does one verb. The exit code is 0 for success, and 2 for wrong arguments. It is 1 where the api refuses the call, where it
// cannot be reached, or where status says that something waits.
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
	c := client.New(p.URL("TIERFLOW_URL", a.URL), p.Secret("TIERFLOW_API_KEY", a.APIKey, a.APIKeyFile))
	if err := p.Err(); err != nil {
		fmt.Fprintln(stderr, "tierctl:", err)
		return process.Settings
	}
	v := view{out: stdout, json: a.JSON}
	c.OnAnswer = v.answer
	switch err := a.do(ctx, verb, c, v, stdin); {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, errAttention):
		return process.Failed // status has printed it
	default:
		fmt.Fprintln(stderr, "tierctl:", err)
		return process.Failed
	}
	return process.OK
}

// errAttention says that something waits for a human.
var errAttention = errors.New("something waits for a human")

// show prints what a call of the client returns. With --json, view.answer has printed it already.
func show[T any](v view, print func(*table, T)) func(answer T, err error) error {
	return func(answer T, err error) error {
		if err != nil || v.json {
			return err
		}
		return v.table(func(t *table) { print(t, answer) })
	}
}

func (a arguments) do(ctx context.Context, verb string, c *client.Client, v view, stdin io.Reader) error {
	switch verb {
	case "list":
		page := client.Page{Limit: a.List.Limit}
		if a.List.After != 0 {
			page.After = strconv.FormatInt(a.List.After, 10)
		}
		return show(v, showItems)(c.Items(ctx, client.ItemFilter{Level: a.List.Level, Filename: a.List.Filename}, page))
	case "show":
		return show(v, showItem)(c.Item(ctx, a.Show.id()))
	case "explain":
		return explain(ctx, c, v, a.Explain.id())
	case "location":
		return show(v, showLocation)(c.Location(ctx, a.Location.id()))
	case "history":
		return show(v, showHistory)(c.History(ctx, a.History.id(), a.History.Before, a.History.Limit))
	case "register":
		n := client.NewItem{CID: a.Register.id(), Filename: a.Register.Filename}
		if a.Register.Level != "" {
			n.Level = &a.Register.Level
		}
		return show(v, showItem)(c.Register(ctx, n))
	case "forget":
		return v.done(c.Forget(ctx, a.Forget.id()))
	case "pin":
		pin := client.Pin{Level: a.Pin.Level}
		if a.Pin.Until != "" {
			pin.Until = &a.Pin.Until
		}
		return show(v, showItem)(c.Pin(ctx, a.Pin.id(), pin))
	case "unpin":
		return show(v, showItem)(c.Unpin(ctx, a.Unpin.id()))
	case "post":
		return show(v, showAccepted)(c.PostView(ctx, client.View{CID: a.Post.id(), Count: item.Count(a.Post.Count)}))
	case "levels":
		return show(v, showLevels)(c.Levels(ctx))
	case "set-levels":
		levels, err := readLevels(a.SetLevels.File, stdin)
		if err != nil {
			return err
		}
		return show(v, showLevels)(c.SetLevels(ctx, levels))
	case "plan":
		levels, err := readLevels(a.Plan.File, stdin)
		if err != nil {
			return err
		}
		return show(v, showPlan)(c.PlanLevels(ctx, levels))
	case "status":
		answer, err := c.Status(ctx)
		if err == nil && len(answer.Attention) > 0 {
			return errors.Join(show(v, showStatus)(answer, nil), errAttention)
		}
		return show(v, showStatus)(answer, err)
	case "relocations":
		page := client.Page{After: a.Relocations.After, Limit: a.Relocations.Limit}
		if a.Relocations.Watch {
			return watch(ctx, c, v, page)
		}
		return show(v, showRelocations)(c.Relocations(ctx, page))
	case "waiting":
		return show(v, showWaiting)(c.Waiting(ctx, item.ID(a.Waiting.CID), a.Waiting.Limit))
	case "events":
		return printEvents(ctx, c, v)
	case "dead":
		return show(v, showDeadLetters)(c.DeadLetters(ctx, client.Page{After: a.Dead.After, Limit: a.Dead.Limit}))
	case "retry":
		return show(v, showRetried)(c.Retry(ctx, a.Retry.ID))
	case "drop":
		return v.done(c.Drop(ctx, a.Drop.ID))
	case "pause":
		return show(v, showPaused)(c.Pause(ctx))
	case "resume":
		return show(v, showPaused)(c.Resume(ctx))
	}
	return errors.New("there is no verb " + verb)
}

// readLevels reads the document of set-levels and of plan. The api checks it.
func readLevels(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

// watch shows what is in flight every second until ctx ends.
func watch(ctx context.Context, c *client.Client, v view, page client.Page) error {
	for {
		v.clear()
		if err := show(v, showRelocations)(c.Relocations(ctx, page)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// printEvents prints events until ctx ends. It reconnects when the connection is lost, and resumes after the last event. A
// refusal of the api ends it, and so does a first connection that fails.
func printEvents(ctx context.Context, c *client.Client, v view) error {
	last := ""
	for {
		var failed error // of printing
		err := c.Events(ctx, last, func(e client.Event) error {
			if e.ID != "" {
				last = e.ID
			}
			if e.Event != "" {
				failed = v.event(e)
			}
			return failed
		})
		var p *client.Problem
		switch {
		case ctx.Err() != nil:
			return nil
		case failed != nil:
			return failed
		case errors.As(err, &p) && p.Status < 500, last == "":
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}
