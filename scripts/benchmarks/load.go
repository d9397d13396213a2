package benchmarks

import (
	"bytes"
	"context"
	_ "embed" // for post.lua
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/item"
)

//go:embed post.lua
var postScript []byte

// load posts view counts with wrk, which leaves most of the CPU to the services.
type load struct {
	name         string
	ids          []string // of the items, in the order in which they are posted
	script, cids string   // files
	lasts        time.Duration
}

// newLoad prepares a load of items in the order in which next returns them.
func newLoad(b *Bench, name string, next func() item.ID) (*load, error) {
	l := &load{name: name, lasts: 3 * time.Second}
	if b.Quick {
		l.lasts = time.Second
	}
	var cids bytes.Buffer
	cids.WriteString("cids = {")
	for range 1 << 17 {
		id := next().String()
		l.ids = append(l.ids, id)
		cids.WriteString(strconv.Quote(id) + ",\n")
	}
	cids.WriteString("}")
	var err error
	if l.script, err = b.writeFile("post.lua", postScript); err != nil {
		return nil, err
	}
	l.cids, err = b.writeFile(name+".lua", cids.Bytes())
	return l, err
}

// result is what wrk reports of a load.
type result struct {
	took time.Duration
	ok   int           // answers with 2xx
	cpu  time.Duration // used by wrk
}

func (r result) rate() float64 { return float64(r.ok) / r.took.Seconds() }

// run posts to the URL. An answer other than 2xx and a broken connection are errors.
func (l *load) run(ctx context.Context, url string) (result, error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t1", fmt.Sprintf("-c%d", connections), "-d", l.lasts.String(), "-s", l.script, url,
		"--", l.cids)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	var us, requests, status, broken int
	_, line, _ := strings.Cut(string(out), "RESULT ")
	if _, err := fmt.Sscan(line, &us, &requests, &status, &broken); err != nil {
		return result{}, fmt.Errorf("wrk said no result: %w\n%s", err, out)
	}
	if status+broken > 0 {
		return result{}, fmt.Errorf("%d of %d posts were not answered with 200, %d connections broke: %w", status, requests, broken, errRefused)
	}
	return result{time.Duration(us) * time.Microsecond, requests, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

// answers returns nil if something serves HTTP at the address.
func answers(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// writeFile writes a file into the part's folder and returns its path.
func (b *Bench) writeFile(name string, data []byte) (string, error) {
	path := filepath.Join(b.Dir, name)
	return path, os.WriteFile(path, data, 0o644)
}
