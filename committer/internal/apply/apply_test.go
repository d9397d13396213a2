package apply_test

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/committer/internal/apply"
	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

func TestACommitChangesTheRowAndRecordsIt(t *testing.T) {
	d := newDatabase(t, 2)
	before := d.row(1)
	e := relocated(1, 1)
	r := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{e})[0]
	expectOutcome(t, r, event.OutcomeCommitted, "gold")
	if r.Again || r.Generation != 1 || time.Since(r.At).Abs() > time.Minute || r.At.Location() != time.UTC {
		t.Errorf("result: %+v", r)
	}
	row := d.row(1)
	want := before
	want.Level, want.Generation, want.ViewCount, want.SizeBytes, want.Digest, want.Updated = "gold", 1, 2500, 4096, e.Digest, r.At
	if row != want {
		t.Errorf("row\n%+v, want\n%+v", row, want)
	}
	hs, err := d.History(t.Context(), 1, 0, 10)
	if err != nil || len(hs) != 1 {
		t.Fatalf("history: %v, %v", hs, err)
	}
	h := hs[0]
	h.ID = 0
	if h != (catalog.History{
		EventID: e.EventID, CID: 1, OldLevel: "bronze", NewLevel: "gold", PrevUpdateTime: before.Updated, UpdateTime: r.At,
		ViewCount: 2500, Bytes: 4096, Duration: 1500 * time.Microsecond, WorkerID: "w1",
	}) {
		t.Errorf("history: %+v", h)
	}
	d.expectRow(2, "bronze", 0)
}

func TestAMoveThatReadNoBytesKeepsTheDigest(t *testing.T) {
	d := newDatabase(t, 2)
	d.exec("UPDATE contents SET digest = 'sha256:old'")
	linked, copied := relocated(1, 1), relocated(2, 2)
	linked.Digest = ""
	a := apply.New(d.DB())
	for _, r := range a.Apply(t.Context(), []event.Relocated{linked, copied}) {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	if got := d.row(1).Digest; got != "sha256:old" {
		t.Errorf("the digest became %q", got)
	}
	if got := d.row(2).Digest; got != copied.Digest {
		t.Errorf("the digest became %q", got)
	}
	linked.EventID, linked.From, linked.To, linked.Generation = eventID(3), "gold", "silver", 1
	expectOutcome(t, a.Apply(t.Context(), []event.Relocated{linked})[0], event.OutcomeCommitted, "silver")
	if got := d.row(1).Digest; got != "sha256:old" {
		t.Errorf("the digest became %q where no entry had one", got)
	}
}

func TestTheLargestNumbersAndAClockThatWentBackAreCommitted(t *testing.T) {
	d := newDatabase(t, 0)
	const id = item.ID(math.MaxInt64)
	d.exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", id, filename(id))
	e := relocated(1, id)
	e.Count, e.Bytes, e.FinishedAt = math.MaxInt64, math.MaxInt64, e.StartedAt.Add(-time.Hour)
	expectOutcome(t, apply.New(d.DB()).Apply(t.Context(), []event.Relocated{e})[0], event.OutcomeCommitted, "gold")
	if r := d.row(id); r.ViewCount != math.MaxInt64 || r.SizeBytes != math.MaxInt64 {
		t.Errorf("row: %+v", r)
	}
	if hs, err := d.History(t.Context(), id, 0, 1); err != nil || len(hs) != 1 || hs[0].Duration != 0 {
		t.Errorf("history: %+v, %v", hs, err)
	}
}

func TestARelocationIsCommittedOnceHoweverOftenItIsDelivered(t *testing.T) {
	t.Run("again and again", func(t *testing.T) {
		d := newDatabase(t, 1)
		a := apply.New(d.DB())
		first := a.Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0]
		for range 3 {
			r := a.Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0]
			expectOutcome(t, r, event.OutcomeCommitted, "gold")
			if !r.Again || !r.At.Equal(first.At) || r.Generation != 1 {
				t.Errorf("again: %+v, first: %+v", r, first)
			}
		}
		d.expectRow(1, "gold", 1)
		d.expectHistory(1, 1)
	})
	t.Run("twice in one batch", func(t *testing.T) {
		d := newDatabase(t, 2)
		rs := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1), relocated(2, 2), relocated(1, 1)})
		for _, r := range rs {
			expectOutcome(t, r, event.OutcomeCommitted, "gold")
		}
		d.expectRow(1, "gold", 1)
		d.expectHistory(1, 1)
	})
	t.Run("committed, and then the item moved on", func(t *testing.T) {
		d := newDatabase(t, 1)
		a := apply.New(d.DB())
		next := relocated(2, 1)
		next.From, next.To, next.Generation = "gold", "silver", 1
		a.Apply(t.Context(), []event.Relocated{relocated(1, 1)})
		a.Apply(t.Context(), []event.Relocated{next})
		expectOutcome(t, a.Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0], event.OutcomeCommitted, "silver")
		d.expectHistory(1, 2)
	})
	t.Run("to several committers at once", func(t *testing.T) {
		d := newDatabase(t, 50)
		var es []event.Relocated
		for id := item.ID(1); id <= 50; id++ {
			es = append(es, relocated(int(id), id))
		}
		done := make(chan []apply.Result)
		for range 4 {
			a := apply.New(open(t, d.dsn).DB())
			go func() {
				// An entry whose row another one has locked is delivered again.
				todo := es
				var all []apply.Result
				for len(todo) > 0 {
					var busy []event.Relocated
					for i, r := range a.Apply(t.Context(), todo) {
						if fault.Is(r.Err, fault.Busy) {
							busy = append(busy, todo[i])
							continue
						}
						all = append(all, r)
					}
					todo = busy
				}
				done <- all
			}()
		}
		first := 0
		for range 4 {
			for _, r := range <-done {
				expectOutcome(t, r, event.OutcomeCommitted, "gold")
				if !r.Again {
					first++
				}
			}
		}
		if first != 50 {
			t.Errorf("%d first commits of 50 relocations", first)
		}
		d.expectHistory(0, 50)
	})
}

func TestOnlyTheRowThatTheRelocatorSawIsChanged(t *testing.T) {
	for name, change := range map[string]string{
		"a release has begun":        "UPDATE contents SET generation = generation + 1",
		"somebody moved it by hand":  "UPDATE contents SET content_level = 'silver'",
		"it was registered anew":     "UPDATE contents SET filename = 'other.mp4'",
		"it differs in letters only": "UPDATE contents SET filename = 'F1.mp4'",
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t, 1)
			d.exec(change)
			before := d.row(1)
			r := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0]
			expectOutcome(t, r, event.OutcomeSuperseded, before.Level)
			if after := d.row(1); after != before {
				t.Errorf("the row became %+v", after)
			}
			d.expectHistory(1, 0)
		})
	}
	t.Run("it is not there any more", func(t *testing.T) {
		d := newDatabase(t, 0)
		r := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0]
		expectOutcome(t, r, event.OutcomeSuperseded, "")
		d.expectHistory(0, 0)
	})
}

func TestTheFirstOfTwoMovesOfOneItemInABatchCommits(t *testing.T) {
	d := newDatabase(t, 1)
	second := relocated(2, 1)
	second.To = "silver"
	rs := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1), second})
	expectOutcome(t, rs[0], event.OutcomeCommitted, "gold")
	expectOutcome(t, rs[1], event.OutcomeSuperseded, "gold")
	d.expectRow(1, "gold", 1)
	d.expectHistory(1, 1)
}

func TestASecondMoveOfAnEventIsCommittedAndAddedToItsRecord(t *testing.T) {
	d := newDatabase(t, 1)
	a := apply.New(d.DB())
	toSilver, toGold := relocated(1, 1), relocated(1, 1)
	toSilver.To = "silver"
	toGold.From, toGold.Generation, toGold.WorkerID = "silver", 1, "w2"
	expectOutcome(t, a.Apply(t.Context(), []event.Relocated{toSilver})[0], event.OutcomeCommitted, "silver")
	r := a.Apply(t.Context(), []event.Relocated{toGold})[0]
	expectOutcome(t, r, event.OutcomeCommitted, "gold")
	if r.Again {
		t.Error("the second move was taken for the first")
	}
	d.expectRow(1, "gold", 2)
	hs, err := d.History(t.Context(), 1, 0, 10)
	if err != nil || len(hs) != 1 {
		t.Fatalf("history: %v, %v", hs, err)
	}
	if h := hs[0]; h.OldLevel != "bronze" || h.NewLevel != "gold" || h.Bytes != 2*4096 ||
		h.Duration != 3*time.Millisecond || h.WorkerID != "w2" || !h.UpdateTime.Equal(r.At) {
		t.Errorf("history: %+v", h)
	}
	t.Run("and delivered again it changes nothing", func(t *testing.T) {
		rs := a.Apply(t.Context(), []event.Relocated{toGold, toSilver})
		expectOutcome(t, rs[0], event.OutcomeCommitted, "gold")
		expectOutcome(t, rs[1], event.OutcomeSuperseded, "gold")
		d.expectRow(1, "gold", 2)
	})
}

func TestAnEventOfAnotherItemIsRefused(t *testing.T) {
	d := newDatabase(t, 2)
	a := apply.New(d.DB())
	a.Apply(t.Context(), []event.Relocated{relocated(1, 1)})
	expectKind(t, a.Apply(t.Context(), []event.Relocated{relocated(1, 2)})[0], fault.Conflict)
	d.expectRow(2, "bronze", 0)
	d.expectHistory(0, 1)
}

func TestABadRowNeverFailsItsBatch(t *testing.T) {
	spoil := map[int]func(*event.Relocated){
		17:  func(e *event.Relocated) { e.To = "nowhere" },
		101: func(e *event.Relocated) { e.WorkerID = strings.Repeat("w", 300) },
		102: func(e *event.Relocated) { e.Bytes = -1 },
		200: func(e *event.Relocated) { e.Digest = strings.Repeat("d", 100) },
	}
	for _, bad := range [][]int{{17}, {17, 101, 102, 200}} {
		t.Run(fmt.Sprintf("%d of 200", len(bad)), func(t *testing.T) {
			d := newDatabase(t, 200)
			var es []event.Relocated
			for id := item.ID(1); id <= 200; id++ {
				es = append(es, relocated(int(id), id))
			}
			for _, n := range bad {
				spoil[n](&es[n-1])
			}
			rs := apply.New(d.DB()).Apply(t.Context(), es)
			good := 0
			for i, r := range rs {
				if r.Err == nil {
					good++
					expectOutcome(t, r, event.OutcomeCommitted, "gold")
					continue
				}
				expectKind(t, r, fault.Unprocessable)
				d.expectRow(es[i].ID, "bronze", 0)
				if want := "item " + es[i].ID.String(); !strings.Contains(r.Err.Error(), want) {
					t.Errorf("the error %q does not name %s", r.Err, want)
				}
			}
			if good != 200-len(bad) {
				t.Errorf("%d were committed", good)
			}
			d.expectHistory(0, good)
		})
	}
}

func TestACommitSeesWhatAnotherCommitterDidWhileItWaitedForTheRow(t *testing.T) {
	d := newDatabase(t, 1)
	ctx := soon(t)
	// A locked table holds the commit up right before it locks its row.
	other, err := d.DB().Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(ctx, "LOCK TABLES contents WRITE, `level` READ"); err != nil {
		t.Fatal(err)
	}
	results := make(chan []apply.Result, 1)
	go func() { results <- apply.New(open(t, d.dsn).DB()).Apply(ctx, []event.Relocated{relocated(1, 1)}) }()
	d.eventuallyRuns(ctx, "SELECT cid%FOR UPDATE%")
	d.exec("INSERT INTO update_history (event_id, cid, old_level, new_level, prev_update_time, update_time)"+
		" VALUES (?, 1, 'bronze', 'gold', NOW(6), NOW(6))", eventID(1))
	for _, statement := range []string{
		"UPDATE contents SET content_level = 'gold', generation = 1 WHERE cid = 1", "UNLOCK TABLES",
	} {
		if _, err := other.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	r := (<-results)[0]
	expectOutcome(t, r, event.OutcomeCommitted, "gold")
	if !r.Again {
		t.Error("it was committed a second time")
	}
}

func TestALockedRowHoldsUpNoOtherCommit(t *testing.T) {
	d := newDatabase(t, 5)
	other, err := d.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	if _, err := other.Exec("UPDATE contents SET view_count = 1 WHERE cid = 3"); err != nil {
		t.Fatal(err)
	}
	var es []event.Relocated
	for id := item.ID(1); id <= 5; id++ {
		es = append(es, relocated(int(id), id))
	}
	a := apply.New(d.DB())
	for i, r := range a.Apply(soon(t), es) {
		if i == 2 {
			expectKind(t, r, fault.Busy)
			continue
		}
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	expectOutcome(t, a.Apply(soon(t), es)[2], event.OutcomeCommitted, "gold")
	d.expectHistory(0, 5)
}

func TestAWriterThatLocksInReverseOrderHoldsUpNoCommit(t *testing.T) {
	d := newDatabase(t, 9)
	other, err := d.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	var es []event.Relocated
	for id := item.ID(1); id <= 9; id++ {
		es = append(es, relocated(int(id), id))
	}
	a := apply.New(d.DB())
	for id := 9; id >= 1; id-- {
		if _, err := other.Exec("UPDATE contents SET view_count = 1 WHERE cid = ?", id); err != nil {
			t.Fatalf("the other writer at %d: %v", id, err)
		}
		if id == 5 {
			for i, r := range a.Apply(soon(t), es) {
				if i+1 >= 5 {
					expectKind(t, r, fault.Busy)
				} else {
					expectOutcome(t, r, event.OutcomeCommitted, "gold")
				}
			}
		}
	}
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, r := range a.Apply(soon(t), es) {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	d.expectHistory(0, 9)
}

func TestADeadlockIsTriedAgain(t *testing.T) {
	d := newDatabase(t, 3)
	ctx := soon(t)
	// The other writer has the level that the commit will ask for, and has changed so much that it is not the victim.
	other, err := d.DB().BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback()
	if _, err := other.Exec("UPDATE `level` SET path = CONCAT(path, '/x') WHERE content_level = 'gold'"); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := other.Exec("INSERT INTO contents (cid, content_level, filename) VALUES (?, 'bronze', ?)", 100+i, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	results := make(chan []apply.Result, 1)
	a := apply.New(open(t, d.dsn).DB())
	go func() { results <- a.Apply(ctx, []event.Relocated{relocated(1, 1), relocated(2, 2)}) }()
	d.eventuallyRuns(ctx, "UPDATE contents SET generation%")
	if _, err := other.ExecContext(ctx, "UPDATE contents SET view_count = 7 WHERE cid = 1"); err != nil {
		t.Fatalf("the other writer was the victim: %v", err)
	}
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	rs := <-results
	// The victim's rows were free for a moment, then the other writer had one of them.
	if fault.Is(rs[0].Err, fault.Busy) {
		rs[0] = a.Apply(ctx, []event.Relocated{relocated(1, 1)})[0]
	}
	for _, r := range rs {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	d.expectRow(1, "gold", 1)
	d.expectHistory(0, 2)
}

func TestACommitWhoseReplyIsLostIsFoundOut(t *testing.T) {
	// The protocol's command byte tells COMMIT from READ COMMITTED.
	const commit = "\x03COMMIT"
	for _, statement := range []string{commit, "INSERT INTO update_history", "UPDATE contents", "FOR UPDATE", "START"} {
		t.Run(strings.TrimPrefix(statement, "\x03"), func(t *testing.T) {
			d := newDatabase(t, 3)
			gate, dsn := testserver.MySQLGate(t, d.dsn)
			a := apply.New(open(t, dsn).DB())
			es := []event.Relocated{relocated(1, 1), relocated(2, 2), relocated(3, 3)}
			cut := gate.CutReply(statement)
			rs := a.Apply(t.Context(), es)
			<-cut
			if rs[0].Err == nil && rs[0].Again != (statement == commit) {
				t.Errorf("committed by an earlier try: %v", rs[0].Again)
			}
			// The server may hold the rows until it sees that the first connection is gone.
			testserver.Eventually(t, "all are committed", 10*time.Second, func() error {
				rs := a.Apply(t.Context(), es)
				for _, r := range rs {
					if r.Err != nil {
						return r.Err
					}
					expectOutcome(t, r, event.OutcomeCommitted, "gold")
				}
				return nil
			})
			for _, e := range es {
				d.expectRow(e.ID, "gold", 1)
			}
			d.expectHistory(0, 3)
		})
	}
}

func TestNothingIsDecidedWhileMySQLIsAway(t *testing.T) {
	d := newDatabase(t, 2)
	gate, dsn := testserver.MySQLGate(t, d.dsn)
	a := apply.New(open(t, dsn).DB())
	gate.Close()
	es := []event.Relocated{relocated(1, 1), relocated(2, 2)}
	for _, r := range a.Apply(t.Context(), es) {
		expectKind(t, r, fault.Unavailable)
	}
	gate.Open()
	for _, r := range a.Apply(t.Context(), es) {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
}

func TestNothingIsDecidedWithoutASchema(t *testing.T) {
	d := newDatabase(t, 1)
	d.exec("DROP TABLE update_history")
	r := apply.New(d.DB()).Apply(t.Context(), []event.Relocated{relocated(1, 1)})[0]
	expectKind(t, r, fault.Unavailable)
	if !strings.Contains(r.Err.Error(), "committer migrate") {
		t.Errorf("the error has no hint: %v", r.Err)
	}
	d.expectRow(1, "bronze", 0)
}

func TestACancelledCallDecidesNothing(t *testing.T) {
	d := newDatabase(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expectKind(t, apply.New(d.DB()).Apply(ctx, []event.Relocated{relocated(1, 1)})[0], fault.Unavailable)
	d.expectRow(1, "bronze", 0)
}

func TestALargeBatchIsReadByPrimaryKey(t *testing.T) {
	d := newDatabase(t, 0)
	var values []string
	for id := 1; id <= 2000; id++ {
		values = append(values, fmt.Sprintf("(%d, 'bronze', 'f%d.mp4')", id, id))
	}
	d.exec("INSERT INTO contents (cid, content_level, filename) VALUES " + strings.Join(values, ", "))
	d.exec("ANALYZE TABLE contents")
	var es []event.Relocated
	for id := item.ID(1); id <= 500; id++ {
		es = append(es, relocated(int(id), 4*id))
	}
	text, args := apply.UpdateStatement(es)
	rows, err := d.DB().Query("EXPLAIN FORMAT=TRADITIONAL "+text, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, _ := rows.Columns()
	for rows.Next() {
		cells := make([]sql.NullString, len(names))
		into := make([]any, len(names))
		for i := range cells {
			into[i] = &cells[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		plan := map[string]string{}
		for i, n := range names {
			plan[n] = cells[i].String
		}
		if plan["key"] != "PRIMARY" || plan["type"] != "range" {
			t.Errorf("plan: %v", plan)
		}
	}
	began := time.Now()
	for _, r := range apply.New(d.DB()).Apply(t.Context(), es) {
		expectOutcome(t, r, event.OutcomeCommitted, "gold")
	}
	t.Logf("500 relocations took %s", time.Since(began))
	d.expectHistory(0, 500)
}
