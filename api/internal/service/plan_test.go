package service_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tierflow/tierflow/api/client"
)

func TestAPlanSaysWhatALaterChangeOfLevelsMovesAndChangesNothing(t *testing.T) {
	a := start(t, options{})
	a.insert(1, "bronze", "1") // 500 views in its state: silver
	a.insert(2, "bronze", "2") // 10 views: stays
	a.insert(3, "silver", "3") // 1500 views in its row: gold
	a.insert(4, "gold", "4")   // never counted, put there on purpose: stays
	a.insert(5, "bronze", "5") // 500 views, but pinned
	a.insert(6, "bronze", "6") // 500 views in its row: silver
	a.post("cid=1&count=500")
	a.exec("UPDATE contents SET view_count = 10, generation = 1 WHERE cid = 2")
	a.exec("UPDATE contents SET view_count = 1500, generation = 1, size_bytes = 30 WHERE cid = 3")
	a.exec("UPDATE contents SET view_count = 500, generation = 1, pinned_level = 'bronze' WHERE cid = 5")
	a.exec("UPDATE contents SET view_count = 500, generation = 1, size_bytes = 7 WHERE cid = 6")
	before := a.want(200, "GET", "/v1/levels", "", nil)
	var p client.Plan
	a.want(200, "POST", "/v1/levels/plan", newLevels, &p)
	if want := []client.PlannedMove{{From: "bronze", To: "silver", Items: 2, Bytes: 7, Unsized: 1}, {From: "silver", To: "gold", Items: 1, Bytes: 30}}; !slices.Equal(p.Moves, want) {
		t.Errorf("moves %+v, want %+v", p.Moves, want)
	}
	if want := []client.PlannedLevel{{Level: "bronze", Items: 4, Bytes: 7, ItemsAfter: 2}, {Level: "silver", Items: 1, Bytes: 30, ItemsAfter: 2, BytesAfter: 7},
		{Level: "gold", Items: 1, ItemsAfter: 2, BytesAfter: 30}}; !slices.Equal(p.Levels, want) {
		t.Errorf("levels %+v, want %+v", p.Levels, want)
	}
	if after := a.want(200, "GET", "/v1/levels", "", nil); after != before || a.changes() != 0 {
		t.Errorf("the plan has changed the levels: %s", after)
	}
	a.eventuallyViews(0, "1=500")
	a.want(200, "PUT", "/v1/levels", newLevels, nil)
	a.eventuallyViews(1, "1=500", "3=1500", "6=500") // what was planned
	for id := 1; id <= 6; id++ {
		if _, ok := a.review(id); ok != slices.Contains([]int{1, 3, 6}, id) {
			t.Errorf("item %d has a review: %v", id, ok)
		}
	}
}

func TestAPlanOfWrongLevelsSaysWhatIsWrong(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "gold", "g.mp4")
	a.wantProblem("POST", "/v1/levels/plan", jsonT, `{"levels":[{"level":"bronze","min_counts":5,"path":"/x"}]}`, 422, "unprocessable", "must start at 0")
	a.wantProblem("POST", "/v1/levels/plan", jsonT, `{"levels":[{"level":"bronze","min_counts":0,"path":"/x"}]}`, 409, "conflict", "gold")
}

func TestAPlanReadsEveryPage(t *testing.T) {
	a := start(t, options{})
	const items = 10_001 // two pages and one item
	for from := 0; from < items; from += 2000 {
		var rows []byte
		for id := from + 1; id <= min(from+2000, items); id++ {
			rows = fmt.Appendf(rows, "(%d, 'gold', '%d', 5, 1),", id, id)
		}
		a.exec("INSERT INTO contents (cid, content_level, filename, view_count, generation) VALUES " + string(rows[:len(rows)-1]))
	}
	var p client.Plan
	a.want(200, "POST", "/v1/levels/plan", newLevels, &p)
	if want := []client.PlannedMove{{From: "gold", To: "bronze", Items: items, Unsized: items}}; !slices.Equal(p.Moves, want) {
		t.Errorf("%+v", p.Moves)
	}
}
