package powercut_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/mover"
	"github.com/tierflow/tierflow/relocator/internal/tier"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// route is a pair of tiers.
type route struct {
	name     string
	disks    []string // one or two kinds of disks
	from, to string   // folders of the tiers, below the laboratory's folder
	bind     bool     // one disk on which each tier has its own mount: EXDEV, although both have one st_dev
	method   string
}

var routes = []route{
	{name: "ext4", disks: []string{ext4}, from: "0/bronze", to: "0/gold", method: mover.Linked},
	{name: "xfs", disks: []string{xfs}, from: "0/bronze", to: "0/gold", method: mover.Linked},
	{name: "btrfs", disks: []string{btrfs}, from: "0/bronze", to: "0/gold", method: mover.Linked},
	{name: "xfs, two mounts", disks: []string{xfs}, from: "from", to: "to", bind: true, method: mover.Cloned},
	{name: "btrfs, two subvolumes", disks: []string{subvolumes}, from: "0/bronze", to: "0/gold", method: mover.Cloned},
	{name: "ext4 to xfs", disks: []string{ext4, xfs}, from: "0/bronze", to: "1/gold", method: mover.Copied},
	{name: "xfs to btrfs", disks: []string{xfs, btrfs}, from: "0/bronze", to: "1/gold", method: mover.Copied},
	{name: "btrfs to ext4", disks: []string{btrfs, ext4}, from: "0/bronze", to: "1/gold", method: mover.Copied},
}

// The kinds of items, and how the item got to its tier.
const (
	file      = "file"
	directory = "directory"

	synced   = "synced"
	unsynced = "never synced" // an upload a moment ago
	adopted  = "target there" // synced, and an operator has copied it to the target with cp, which syncs nothing
)

// scenario is one move that is tested.
type scenario struct {
	route
	kind   string
	source string
	shared bool // another item lies in the same folders, on both tiers
	stream bool // copies are not read back; reading back makes the kernel write them early
	whole  bool // syncfs is used, as with many concurrent moves
	full   bool // the source's disk has no room for a folder: the release takes the tier's reserve
	busy   bool // another process makes the file system write its journal all the time, but not the data
}

func (s scenario) String() string {
	name := fmt.Sprintf("%s by %s, %s, %s", s.kind, s.method, s.name, s.source)
	if s.shared {
		name += ", beside others"
	}
	if s.stream {
		name += ", not read back"
	}
	if s.whole {
		name += ", syncfs"
	}
	if s.full {
		name += ", no room"
	}
	if s.busy {
		name += ", busy disks"
	}
	return name
}

// The item. In a scenario that is not shared, its folders do not exist on the target.
const (
	id       = item.ID(7)
	eventID  = "01934567-89ab-7cde-8f01-23456789abcd"
	filename = "films/new/x"
)

// state is what MySQL and Redis hold. Tier 0 is the source's, tier 1 the target's.
type state struct {
	row        int  // contents.content_level
	generation int  // contents.generation
	history    bool // update_history has the event
	want       int  // the tier that the newest event calls for

	view      bool    // the entry in `views` is not settled
	relocated bool    // the entry in `relocated` is not settled
	lookedUp  int     // the generation in the entry in `relocated`
	clear     [2]bool // an entry in `committed` that asks to release the copy on the tier is not settled

	// These say who may lose a file that was never synced. They are not on the servers.
	uploaders bool // nobody has synced the source yet
	operators bool // the target's copy is from an operator's cp, and nobody has synced it yet
}

func (p state) String() string {
	s := fmt.Sprintf("the row names tier %d, generation %d, wanted on %d", p.row, p.generation, p.want)
	if p.view {
		s += ", views unsettled"
	}
	if p.relocated {
		s += fmt.Sprintf(", relocated unsettled (generation %d)", p.lookedUp)
	}
	for t, unsettled := range p.clear {
		if unsettled {
			s += fmt.Sprintf(", to clear: tier %d", t)
		}
	}
	return s
}

func (p state) settled() bool { return !p.view && !p.relocated && !p.clear[0] && !p.clear[1] }

// commit is steps 6 and 7 of the protocol.
func (p state) commit() state {
	switch {
	case p.history:
		p.clear[0] = true
	case p.generation == p.lookedUp:
		p.row, p.history = 1, true
		p.generation++
		p.clear[0] = true
	default: // superseded
		p.clear[1] = true
		p.view = true
	}
	p.relocated = false
	return p
}

// fence is the UPDATE statement of step 8.
func (p *state) fence(t int) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		if p.row == t {
			return false, nil
		}
		p.generation++
		return true, nil
	}
}

// cut is a power cut: the disks as the cut left them, and the possible states of the servers at that moment.
type cut struct {
	after, before string // the steps around it
	points        int    // how many moments have these disks and states
	images        []string
	states        []state
}

// mutation breaks one rule. The zero value breaks none.
type mutation struct {
	hook         func(r *run, step fsys.Step, path string) error // called by the hook of the file system
	discardFirst bool                                            // the record is removed before the emit
	releaseFirst bool                                            // the old copy is removed before the commit
	commitFirst  bool                                            // the row changes before the copy is made
}

// run is a move that is being recorded.
type run struct {
	scenario
	mutation
	levels  [2]policy.Level
	machine *machine
	want    map[string]string // the item

	cuts    []*cut
	states  []state  // the states of the servers that are possible now
	last    string   // the last step
	written []string // the counters of the disks at the last cut
	err     error    // from copying the disks
	calls   int      // calls of the mutation's step
	mutated int      // how often the mutation broke its rule
	refused bool     // a folder, for want of room
}

// cutPower records a cut after the operations so far and before the named step.
func (r *run) cutPower(before string) {
	if r.err != nil {
		return
	}
	if r.busy && before != r.last && !readsOnly(r.last) {
		for i, d := range r.machine.disks {
			if r.err = d.commit(r.disks[i]); r.err != nil {
				return
			}
		}
	}
	images := make([]string, len(r.machine.disks))
	same := len(r.cuts) > 0
	for i, d := range r.machine.disks {
		written, err := d.written()
		if err != nil {
			r.err = err
			return
		}
		if len(r.cuts) > 0 && written == r.written[i] {
			images[i] = r.cuts[len(r.cuts)-1].images[i]
			continue
		}
		same = false
		r.written[i] = written
		if images[i], r.err = lab.copy(d.image); r.err != nil {
			return
		}
	}
	if same {
		c := r.cuts[len(r.cuts)-1]
		if slices.Equal(c.states, r.states) {
			c.points += len(r.states)
			c.before, r.last = before, before
			return
		}
	}
	r.cuts = append(r.cuts, &cut{after: r.last, before: before, points: len(r.states), images: images,
		states: slices.Clone(r.states)})
	r.last = before
}

// readsOnly tells whether a step changes no disk.
func readsOnly(step string) bool {
	for _, prefix := range []string{"open-", "look-", "read-", "recheck-", "drop-cache"} {
		if strings.HasPrefix(step, prefix) {
			return true
		}
	}
	return false
}

// hook records a cut before every operation of the mover.
func (r *run) hook(step fsys.Step, path string) error {
	if step == fsys.RecheckSource && r.kind == file { // the source has been synced by now
		r.states[0].uploaders = false
	}
	r.cutPower(string(step))
	if r.full && step == fsys.MkdirReleased && !r.refused {
		r.refused = true
		return unix.ENOSPC
	}
	if r.mutation.hook != nil {
		return r.mutation.hook(r, step, path)
	}
	return nil
}

// record moves an item from bronze to gold and returns all cuts of the move.
func record(s scenario, mu mutation) (r *run, err error) {
	r = &run{scenario: s, mutation: mu, last: "begin"}
	images := make([]string, len(s.disks))
	for i, kind := range s.disks {
		if images[i], err = lab.copy(lab.blank(kind)); err != nil {
			return nil, err
		}
	}
	defer remove(images)
	if r.machine, err = boot(s.route, images); err != nil {
		return nil, err
	}
	defer r.machine.halt()
	if err := r.prepare(); err != nil {
		return nil, err
	}
	r.written = make([]string, len(images))
	return r, errors.Join(r.move(), r.err)
}

// prepare makes the tiers and the item.
func (r *run) prepare() (err error) {
	for i, place := range []string{r.from, r.to} {
		l := policy.Level{Name: []string{"bronze", "gold"}[i], Max: policy.Open, Path: filepath.Join(lab.dir, place)}
		if l.TierID, err = tier.Init(fsys.FS{}, l, time.Now()); err != nil {
			return err
		}
		r.levels[i] = l
		if r.shared {
			if err := write(file, filepath.Join(filepath.Dir(r.place(i)), "other")); err != nil {
				return err
			}
		}
	}
	if err := r.sync(); err != nil {
		return err
	}
	if err := write(r.kind, r.place(0)); err != nil {
		return err
	}
	if r.source != unsynced {
		if err := r.sync(); err != nil {
			return err
		}
	}
	if r.source == adopted {
		if err := write(r.kind, r.place(1)); err != nil {
			return err
		}
	}
	r.want, err = read(r.place(0))
	return err
}

// sync makes everything on the disks durable.
func (r *run) sync() error {
	for _, d := range r.machine.disks {
		f, err := os.Open(d.at)
		if err == nil {
			err = unix.Syncfs(int(f.Fd()))
			f.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place is the path of the item on a tier.
func (r *run) place(t int) string { return filepath.Join(r.levels[t].Path, filename) }

// attempt is the record of the move in tmp/.
func (r *run) attempt() string {
	return filepath.Join(r.levels[1].Path, item.MetaFolder, "tmp", id.String()+"."+eventID+".first")
}

func (r *run) request(from int, token string) mover.Request {
	return mover.Request{ID: id, EventID: eventID, Token: token, Filename: filename, From: r.levels[from], To: r.levels[1-from]}
}

// move does steps 4 to 8 of the protocol for one view event.
func (r *run) move() error {
	ctx := context.Background()
	o := mover.Options{FS: fsys.FS{Hook: r.hook, Syncs: fsys.NewSyncs(r.whole)}}
	if r.stream {
		o.Verify = mover.Stream
	}
	m := mover.New(o)
	before := state{want: 1, view: true, uploaders: r.source == unsynced, operators: r.source == adopted}
	if r.commitFirst {
		before.row, before.generation, before.history = 1, 1, true
	}
	r.states = []state{before}
	made, err := m.Make(ctx, r.request(0, "first"))
	if err != nil {
		return err
	}
	if method := made.Method; method != r.method && !made.Adopted || made.Adopted != (r.source == adopted) {
		return fmt.Errorf("it was moved by %s, adopted %v", method, made.Adopted)
	}
	r.cutPower("emit")
	r.states[0].operators = false
	before = r.states[0]
	if r.discardFirst {
		if err := made.Discard(); err != nil {
			return err
		}
		r.cutPower("emit")
	}
	emitted := before
	emitted.view, emitted.relocated = false, true
	refused := before
	refused.clear[1] = true
	if r.releaseFirst {
		r.states = []state{emitted}
		if err := r.release(ctx, m, func(context.Context) (bool, error) { return true, nil }); err != nil {
			return err
		}
		return nil
	}
	r.states = []state{emitted, emitted.commit(), refused}
	r.cutPower("discard")
	if err := made.Discard(); err != nil {
		return err
	}
	r.cutPower("commit")
	committed := emitted.commit()
	r.states = []state{committed}
	r.cutPower("release")
	if err := r.release(ctx, m, committed.fence(0)); err != nil {
		return err
	}
	committed.clear[0] = false
	r.states = []state{committed}
	r.cutPower("end")
	return nil
}

func (r *run) release(ctx context.Context, m *mover.Mover, fence func(context.Context) (bool, error)) error {
	out, err := m.Release(ctx, mover.ReleaseRequest{ID: id, Token: "first", Filename: filename, Tier: r.levels[0], Fence: fence})
	if err == nil && out != mover.Released {
		err = fmt.Errorf("the release said %s", out)
	}
	r.cutPower("ack of the release")
	return err
}

// discard removes the images of the cuts.
func (r *run) discard() {
	for _, c := range r.cuts {
		remove(c.images)
	}
}

func remove(images []string) {
	for _, image := range images {
		_ = os.Remove(image)
	}
}

// write makes an item: a file, or a directory of segments.
func write(kind, path string) error {
	files := map[string]int{"": 150_001}
	if kind == directory {
		files = map[string]int{"/master.m3u8": 9, "/1080p/seg-1.ts": 90_000, "/1080p/seg-2.ts": 3, "/empty.vtt": 0}
		if err := os.MkdirAll(path+"/later", 0o750); err != nil {
			return err
		}
	}
	for name, size := range files {
		p := make([]byte, size)
		rnd := rand.NewChaCha8(sha256.Sum256([]byte(name)))
		_, _ = rnd.Read(p)
		if err := os.MkdirAll(filepath.Dir(path+name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path+name, p, 0o640); err != nil {
			return err
		}
	}
	return nil
}

// read describes an item: type, permissions and bytes of everything below its path. It is empty where nothing is there.
func read(path string) (map[string]string, error) {
	m := map[string]string{}
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p == path {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d bytes, %x", len(data), sha256.Sum256(data))
		}
		m[p[len(path):]] = what
		return nil
	})
	return m, err
}
