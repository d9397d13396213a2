package reevaluate

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/policy"
)

// Flow is what would move from one level to another.
type Flow struct {
	From, To string
	Sum
}

// Sum counts items. The size of an item that was never copied is not known: it has 0 bytes, and is one of Unsized.
type Sum struct{ Items, Bytes, Unsized int64 }

func (s *Sum) add(bytes int64) {
	s.Items++
	if s.Bytes += bytes; bytes == 0 {
		s.Unsized++
	}
}

// Plan is what a policy would move, and how much each level has before and after. Levels without items are not in the maps.
type Plan struct {
	Flows         []Flow // by From and To
	Before, After map[string]*Sum
}

// planPage is how many rows a plan reads at once. It reads few columns of each.
const planPage = 5000

// Plan says what would move at once if the policy replaced the levels now, by the newest counts. It reads all items, page by page, and
// writes nothing. The error is fault.Conflict where an item lies on a level that the policy does not have.
func (r *Reevaluator) Plan(ctx context.Context, p policy.Policy) (Plan, error) {
	plan := Plan{Before: map[string]*Sum{}, After: map[string]*Sum{}}
	levels, err := r.Catalog.Levels(ctx)
	if err != nil {
		return plan, err
	}
	flows, now := map[[2]string]*Sum{}, time.Now()
	for after := item.ID(0); ; {
		rows, err := r.Catalog.Outlines(ctx, after, planPage)
		if err != nil {
			return plan, err
		}
		states, err := r.Store.GetMany(ctx, idsOf(rows))
		if err != nil {
			return plan, err
		}
		for i, row := range rows {
			if _, ok := p.Level(row.Level); !ok {
				return plan, fault.New(fault.Conflict, "plan without level", row.Level, errors.New("items lie on it"))
			}
			to := p.Decide(row.Item(newest(row, states[i])), now).Target
			if to == row.Level || !concerns(row, states[i], levels, p, to) {
				to = row.Level
			} else {
				sumOf(flows, [2]string{row.Level, to}).add(row.SizeBytes)
			}
			sumOf(plan.Before, row.Level).add(row.SizeBytes)
			sumOf(plan.After, to).add(row.SizeBytes)
			after = row.ID
		}
		if len(rows) < planPage {
			break
		}
	}
	for way, sum := range flows {
		plan.Flows = append(plan.Flows, Flow{way[0], way[1], *sum})
	}
	slices.SortFunc(plan.Flows, func(a, b Flow) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return plan, nil
}

func sumOf[K comparable](sums map[K]*Sum, key K) *Sum {
	if sums[key] == nil {
		sums[key] = &Sum{}
	}
	return sums[key]
}
