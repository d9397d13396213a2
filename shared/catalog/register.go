package catalog

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
)

// LockItems is the lock under which items are registered: Conflicts answers for as long as the caller holds it.
const LockItems = "contents"

// ErrHeld means that another connection held a lock for the whole wait.
var ErrHeld = errors.New("another session holds it")

// unlockTimeout bounds unlocking.
const unlockTimeout = 2 * time.Second

// Locked calls fn with a connection that holds a lock of this database (GET_LOCK). Of all processes, only one at a time runs
// fn under the same lock. Locked waits for the lock up to wait, in whole seconds; then the error is ErrHeld, as
// fault.Unavailable. MySQL frees the lock when the connection ends.
func (c *Catalog) Locked(ctx context.Context, what string, wait time.Duration, fn func(*sql.Conn) error) error {
	conn, err := c.db.Conn(ctx)
	if err != nil {
		return Wrap("lock", what, err)
	}
	defer conn.Close()
	var database string
	if err := conn.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database); err != nil {
		return Wrap("lock", what, err)
	}
	// A lock's name is unique to the server, not to the database, and has at most 64 characters.
	name := fmt.Sprintf("tierflow:%s:%.16x", what, sha256.Sum256([]byte(database)))
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", name, int(wait.Seconds())).Scan(&got); err != nil {
		return Wrap("lock", what, err)
	}
	if got.Int64 != 1 {
		return fault.New(fault.Unavailable, "lock", what, fmt.Errorf("%w, after a wait of %s", ErrHeld, wait))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
		defer cancel()
		// A broken connection has lost its session, and with it the lock.
		_, _ = conn.ExecContext(ctx, "SELECT RELEASE_LOCK(?)", name)
	}()
	return fn(conn)
}

// NewItem is an item that is not registered yet.
type NewItem struct {
	ID       item.ID // 0: any that is free
	Filename string
}

// FilenamesOf returns the ids of the rows that have these filenames. No row has a name that item.CheckFilename refuses.
func (c *Catalog) FilenamesOf(ctx context.Context, names []string) (map[string]item.ID, error) {
	t := newTaken()
	for part := range slices.Chunk(names, pageSize) {
		var args []any
		for _, n := range part {
			if item.CheckFilename(n) == nil {
				args = append(args, n)
			}
		}
		if len(args) == 0 {
			continue
		}
		query := "SELECT cid, filename FROM contents WHERE filename IN (?" + strings.Repeat(", ?", len(args)-1) + ")"
		if err := t.query(ctx, c.db, query, args); err != nil {
			return nil, Wrap("look up filenames", "", err)
		}
	}
	return t.names, nil
}

// maxNewItems bounds the items of one statement of Conflicts: each has a SELECT of its own in it.
const maxNewItems = 100

// Querier is a pool, a connection or a transaction.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Conflict says why an item cannot be registered.
type Conflict struct {
	Why  string
	Same item.ID // the registered item that has this filename; 0: none has
}

// Conflicts returns for each item what stands against its registration, nil where nothing does. Its cid or its filename is
// taken, by a row or by an earlier item of the same call. Or one filename is a path prefix of the other, so one item would
// lie inside the other. The filenames must be valid.
func Conflicts(ctx context.Context, q Querier, items []NewItem) ([]*Conflict, error) {
	all := make([]*Conflict, 0, len(items))
	taken := newTaken()
	for part := range slices.Chunk(items, maxNewItems) {
		if err := taken.read(ctx, q, part); err != nil {
			return nil, Wrap("look for names that are taken", "", err)
		}
		for _, i := range part {
			why := taken.conflict(i)
			if why == "" {
				taken.add(i.ID, i.Filename)
				all = append(all, nil)
				continue
			}
			all = append(all, &Conflict{why, taken.names[i.Filename]})
		}
	}
	return all, nil
}

// takenNames are the cids and filenames of items.
type takenNames struct {
	ids    map[item.ID]string // filenames
	names  map[string]item.ID
	inside map[string]string // by folder: the filename of one item inside it
}

func newTaken() takenNames {
	return takenNames{map[item.ID]string{}, map[string]item.ID{}, map[string]string{}}
}

func (t takenNames) add(id item.ID, filename string) {
	if id != 0 {
		t.ids[id] = filename
	}
	t.names[filename] = id
	for _, f := range folders(filename) {
		t.inside[f] = filename
	}
}

func (t takenNames) conflict(i NewItem) (why string) {
	if other, is := t.ids[i.ID]; is {
		return fmt.Sprintf("cid %d is taken, by %q", i.ID, other)
	}
	if id, is := t.names[i.Filename]; is {
		return fmt.Sprintf("filename %q is taken, by %s", i.Filename, called(id))
	}
	for _, f := range folders(i.Filename) {
		if id, is := t.names[f]; is {
			return fmt.Sprintf("%q lies inside %q, which is %s", i.Filename, f, called(id))
		}
	}
	if other, is := t.inside[i.Filename]; is {
		return fmt.Sprintf("%q, which is %s, would lie inside %q", other, called(t.names[other]), i.Filename)
	}
	return ""
}

func called(id item.ID) string {
	if id == 0 {
		return "another item of this call"
	}
	return "item " + id.String()
}

// folders returns the folders that a filename lies in.
func folders(filename string) (all []string) {
	for i, c := range filename {
		if c == '/' {
			all = append(all, filename[:i])
		}
	}
	return all
}

// read adds the rows that some of the items conflict with.
func (t takenNames) read(ctx context.Context, q Querier, items []NewItem) error {
	const rows = "SELECT cid, filename FROM contents WHERE "
	ids, names := []any{}, map[string]bool{}
	for _, i := range items {
		if i.ID != 0 {
			ids = append(ids, i.ID)
		}
		names[i.Filename] = true
		for _, f := range folders(i.Filename) {
			names[f] = true
		}
	}
	// Many SELECTs instead of OR: each uses its own index.
	var parts []string
	var args []any
	if len(ids) > 0 {
		parts = append(parts, "("+rows+"cid IN (?"+strings.Repeat(", ?", len(ids)-1)+"))")
		args = append(args, ids...)
	}
	parts = append(parts, "("+rows+"filename IN (?"+strings.Repeat(", ?", len(names)-1)+"))")
	for n := range names {
		args = append(args, n)
	}
	for _, i := range items {
		// Filenames below filename/ sort from filename/ to before the byte after the slash. MySQL compares a shorter text as if
		// spaces followed it, and spaces sort after control characters. The NUL, which no name contains, corrects for that.
		// Other servers do not pad.
		next := i.Filename + "0"
		parts = append(parts, "("+rows+"filename >= ? AND filename < ? AND filename <> ? LIMIT 1)")
		args = append(args, i.Filename+"/\x00", next+"\x00", next)
	}
	return t.query(ctx, q, strings.Join(parts, " UNION ALL "), args)
}

func (t takenNames) query(ctx context.Context, q Querier, query string, args []any) error {
	found, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer found.Close()
	for found.Next() {
		var id item.ID
		var filename string
		if err := found.Scan((*int64)(&id), &filename); err != nil {
			return err
		}
		t.add(id, filename)
	}
	return found.Err()
}
