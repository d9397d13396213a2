package apply

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
)

const (
	// LockWait is how long a statement may wait for a lock; the pool's sessions have it (catalog.Options). The foreign key
	// of content_level takes a shared lock on the level's row. A transaction that somebody leaves open on that row would
	// otherwise hold up the whole batch, for 50 s by default.
	LockWait = time.Second
	// lockedTrial is how long the entries of a locked level wait before one batch tries the level again.
	lockedTrial = 5 * time.Second
)

// lockedLevels are levels to which nothing can be committed because another transaction holds a lock.
type lockedLevels struct {
	mu     sync.Mutex
	levels map[string]lockedLevel
}

type lockedLevel struct {
	err   error
	tried time.Time
}

func (l *lockedLevels) lock(level string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.levels == nil {
		l.levels = map[string]lockedLevel{}
	}
	l.levels[level] = lockedLevel{err, time.Now()}
}

// free forgets that the levels of the entries were locked.
func (l *lockedLevels) free(entries []event.Relocated) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.levels) == 0 {
		return
	}
	for _, e := range entries {
		delete(l.levels, e.To)
	}
}

// check returns why the level waits, nil where it does not. trial: the caller is the one that tries it again.
func (l *lockedLevels) check(level string) (trial bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.levels[level]
	if !ok {
		return false, nil
	}
	if time.Since(known.tried) < lockedTrial {
		return false, known.err
	}
	known.tried = time.Now()
	l.levels[level] = known
	return true, known.err
}

// errLevelLocked is the cause where another transaction holds up a level.
var errLevelLocked = errors.New("another transaction holds a lock on the level or its items, see information_schema.innodb_trx")

// IsLevelLocked tells whether the entry with this error waits because a level is locked, not only its own row.
func IsLevelLocked(err error) bool { return errors.Is(err, errLevelLocked) }

// levelLocked is the error of the entries that wait for the level.
func levelLocked(level string, err error) error {
	return fault.New(fault.Busy, "commit to "+level, "", fmt.Errorf("%w: %w", errLevelLocked, err))
}
