package catalog_test

import (
	"testing"
	"time"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

func TestTheRulesOfALevelTheModeAndAPinsEndAreRead(t *testing.T) {
	c := migrated(t)
	exec(t, c, "UPDATE `level` SET demote_counts = 1600, min_residency = 90, state = 'readonly' WHERE content_level = 'gold'")
	exec(t, c, "UPDATE policy SET mode = 'observe'")
	p, err := c.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gold, _ := p.Level("gold")
	if !p.Observes() || gold.Demote != (policy.Threshold{Count: 1600, Set: true}) || gold.MinResidency != 90*time.Second ||
		gold.State != policy.Readonly {
		t.Errorf("%+v", p)
	}
	exec(t, c, "DELETE FROM policy")
	if p, err := c.Policy(t.Context()); err != nil || p.Observes() {
		t.Errorf("without a row, the policy enforces: %v", err)
	}

	insert(t, c, 7, "gold", "g.mp4")
	exec(t, c, "UPDATE contents SET pinned_level = 'silver', pinned_until = '2030-01-02 03:04:05.678901', update_time = '2029-01-01 00:00:00.5'")
	ends, arrived := time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC), time.Date(2029, 1, 1, 0, 0, 0, 5e8, time.UTC)
	want := policy.Item{Level: "gold", Count: 5, Arrived: arrived, Pin: policy.Pin{Level: "silver", Until: ends}}
	if r, err := c.Row(t.Context(), 7); err != nil || r.Item(5) != want {
		t.Errorf("%+v, %v", r, err)
	}
	if err := c.Placements(t.Context(), []item.ID{7}, func(r catalog.Row) {
		if r.Item(5) != want {
			t.Errorf("%+v", r)
		}
	}); err != nil {
		t.Error(err)
	}
}

func TestAnOldSchemaAsksForMigrate(t *testing.T) {
	c := migrated(t)
	exec(t, c, "DROP TABLE policy")
	if err := c.CheckSchema(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
}
