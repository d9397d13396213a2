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

// route is a pair of tiers. Places are below the laboratory's folder.
type route struct {
	name     string
	disks    []string // one or two kinds
	from, to string
	bind     bool // one disk, and each tier has a mount of its own: cross-device, with one st_dev
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

// What is moved, and how it got there.
const (
	file      = "file"
	directory = "directory"

	synced   = "synced"
	unsynced = "never synced" // an upload a moment ago
	taken    = "target there" // synced, and an operator has copied it to the target with cp, which syncs nothing
)

// scenario is one move that is looked at.
type scenario struct {
	route
	kind   string
	source string
	shared bool // another content lies in the same folders, on both tiers
	stream bool // copies are not read back, which else makes the kernel write them early
	whole  bool // syncs are shared with so many others that whole file systems are synced
	busy   bool // somebody else syncs something of his own all the time, and with it the journal, but not the data
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
	if s.busy {
		name += ", busy disks"
	}
	return name
}

// The content. Where it lies alone, neither folder is there at the target.
const (
	id       = item.ID(7)
	eventID  = "01934567-89ab-7cde-8f01-23456789abcd"
	filename = "films/new/x"
)

// state is what MySQL and Redis know. Tiers are 0, from, and 1, to.
type state struct {
	row        int  // contents.content_level
	generation int  // contents.generation
	history    bool // update_history has the event
	want       int  // the tier that the newest event calls for

	view      bool    // its entry in `views` is not settled
	relocated bool    // its entry in `relocated` is not settled,
	looked    int     // which holds this generation
	clear     [2]bool // `committed` has an unsettled entry that asks to clear the tier

	// Not of the servers: whose loss a damaged copy would be.
	uploaders bool // the source was not synced by anybody yet
	operators bool // the target's name is an operator's cp, and not synced yet
}

func (p state) String() string {
	s := fmt.Sprintf("the row names tier %d, generation %d, wanted on %d", p.row, p.generation, p.want)
	if p.view {
		s += ", views unsettled"
	}
	if p.relocated {
		s += fmt.Sprintf(", relocated unsettled (generation %d)", p.looked)
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
	case p.generation == p.looked:
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

// fence is the UPDATE of step 8.
func (p *state) fence(t int) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		if p.row == t {
			return false, nil
		}
		p.generation++
		return true, nil
	}
}

// cut is a power cut: the disks as it left them, and the states of the servers that may go with them.
type cut struct {
	after, before string // the steps around it
	points        int    // how many instants it stands for
	images        []string
	states        []state
}

// mutation breaks one rule. The zero value breaks none.
type mutation struct {
	hook         func(r *run, step fsys.Step, path string) error // what the hook of the file system answers
	discardFirst bool                                            // the record goes before the emit
	releaseFirst bool                                            // the old copy goes before the commit
	commitFirst  bool                                            // the row changes before the copy is made
}

// run is a move that is being looked at.
type run struct {
	scenario
	mutation
	levels  [2]policy.Level
	machine *machine
	want    map[string]string // the content

	cuts    []*cut
	states  []state
	last    string // the last step
	written []string
	err     error // of copying the disks
	calls   int   // of the step that the mutation is about
	mutated int   // how often the mutation did something
}

// look notes a cut: after the operations so far, before the named step.
func (r *run) look(before string) {
	if r.err != nil {
		return
	}
	if r.busy && before != r.last && !looksOnly(r.last) {
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

// looksOnly tells steps that change no disk.
func looksOnly(step string) bool {
	for _, prefix := range []string{"open-", "look-", "read-", "recheck-", "drop-cache"} {
		if strings.HasPrefix(step, prefix) {
			return true
		}
	}
	return false
}

// hook stops the mover before every operation.
func (r *run) hook(step fsys.Step, path string) error {
	if step == fsys.RecheckSource && r.kind == file { // the source has been synced by now
		r.states[0].uploaders = false
	}
	r.look(string(step))
	if r.mutation.hook != nil {
		return r.mutation.hook(r, step, path)
	}
	return nil
}

// record moves a content from bronze to gold and returns all cuts on the way.
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

// prepare makes tiers and content.
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
	if r.source == taken {
		if err := write(r.kind, r.place(1)); err != nil {
			return err
		}
	}
	r.want, err = read(r.place(0))
	return err
}

// sync makes all that is on the disks durable, as time does.
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

func (r *run) place(t int) string { return filepath.Join(r.levels[t].Path, filename) }

// attempt is the record of the move in tmp/.
func (r *run) attempt() string {
	return filepath.Join(r.levels[1].Path, item.MetaFolder, "tmp", id.String()+"."+eventID+".first")
}

func (r *run) request(from int, token string) mover.Request {
	return mover.Request{ID: id, EventID: eventID, Token: token, Filename: filename, From: r.levels[from], To: r.levels[1-from]}
}

// move is the life of one view event: steps 4 to 8 of the protocol.
func (r *run) move() error {
	ctx := context.Background()
	o := mover.Options{FS: fsys.FS{Hook: r.hook, Syncs: fsys.NewSyncs(r.whole)}}
	if r.stream {
		o.Verify = mover.Stream
	}
	m := mover.New(o)
	before := state{want: 1, view: true, uploaders: r.source == unsynced, operators: r.source == taken}
	if r.commitFirst {
		before.row, before.generation, before.history = 1, 1, true
	}
	r.states = []state{before}
	made, err := m.Make(ctx, r.request(0, "first"))
	if err != nil {
		return err
	}
	if method := made.Method; method != r.method && !made.Adopted || made.Adopted != (r.source == taken) {
		return fmt.Errorf("it was moved by %s, adopted %v", method, made.Adopted)
	}
	r.look("emit")
	r.states[0].operators = false
	before = r.states[0]
	if r.discardFirst {
		if err := made.Discard(); err != nil {
			return err
		}
		r.look("emit")
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
	r.look("discard")
	if err := made.Discard(); err != nil {
		return err
	}
	r.look("commit")
	committed := emitted.commit()
	r.states = []state{committed}
	r.look("release")
	if err := r.release(ctx, m, committed.fence(0)); err != nil {
		return err
	}
	committed.clear[0] = false
	r.states = []state{committed}
	r.look("end")
	return nil
}

func (r *run) release(ctx context.Context, m *mover.Mover, fence func(context.Context) (bool, error)) error {
	out, err := m.Release(ctx, mover.ReleaseRequest{ID: id, Token: "first", Filename: filename, Tier: r.levels[0], Fence: fence})
	if err == nil && out != mover.Released {
		err = fmt.Errorf("the release said %s", out)
	}
	r.look("ack of the release")
	return err
}

// discard removes the cuts' images.
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

// write makes a content: a film, or a package of segments.
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

// read reads a content: kind, permissions and bytes of all there is below its name. It is empty where nothing is.
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
