package apply

import (
	"time"

	"github.com/tierflow/tierflow/shared/event"
)

// UpdateStatement is what changes the rows of the entries.
func UpdateStatement(entries []event.Relocated) (text string, args []any) {
	moves := make([]move, len(entries))
	for i, e := range entries {
		moves[i].Relocated = e
	}
	s := updateStatement(moves, time.Now().UTC())
	return s.text.String(), s.args
}
