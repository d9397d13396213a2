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

// load is a sequence of view counts. run posts it with wrk, which leaves most of the CPU to the services. batch and paced
// post it from this process.
type load struct {
	name         string
	ids          []string // of the items, in the order in which they are posted
	movers       []string // ids of the items that every 1,000th post moves; nil: no post moves anything
	script, cids string   // files
	lasts        time.Duration

	from  int // so many counts were posted before
	moved int // so many posts of movers were posted before
}

// moveEvery is the number of posts of which one moves a file, where a load has movers. post.lua has it too.
const moveEvery = 1000

// firstCount is less than every count of a load but those of movers. Each of them calls for gold.
const firstCount = 1_000_000_000

// view returns the item and the count of the post number i. A mover gets counts for silver and bronze in turn. post.lua
// does the same.
func (l *load) view(i int) (cid string, count int) {
	if len(l.movers) > 0 && i%moveEvery == moveEvery-1 {
		n := l.moved + i/moveEvery
		round := n / len(l.movers)
		if round%2 == 0 {
			return l.movers[n%len(l.movers)], 1000 + round
		}
		return l.movers[n%len(l.movers)], round
	}
	return l.ids[i%len(l.ids)], firstCount + 1 + l.from + i
}

// newLoad prepares a load of items in the order in which next returns them.
func newLoad(b *Bench, name string, movers []string, next func() item.ID) (*load, error) {
	l := &load{name: name, movers: movers, lasts: 3 * time.Second}
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
	if movers != nil {
		cids.WriteString("\nmovers = {'" + strings.Join(movers, "',\n'") + "'}")
	}
	var err error
	if l.script, err = b.writeFile("post.lua", postScript); err != nil {
		return nil, err
	}
	l.cids, err = b.writeFile(strings.NewReplacer(" ", "-", ",", "").Replace(name)+".lua", cids.Bytes())
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
		"--", l.cids, strconv.Itoa(l.from), strconv.Itoa(l.moved))
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
