package gate_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tierflow/tierflow/relocator/internal/gate"
)

func never() {}

// calls makes what a gate calls for a waiter that still waits.
func calls(f func()) func() bool {
	return func() bool {
		f()
		return true
	}
}

var waits = calls(never)

// fill takes slots until there are none.
func fill(g *gate.Gate, prefix string, n gate.Need) (slots []*gate.Slot) {
	for i := 0; ; i++ {
		s := g.Take(fmt.Sprint(prefix, i), n, never, waits)
		if s == nil {
			return slots
		}
		slots = append(slots, s)
	}
}

func TestNoTierAndNoLargeCopiesTakeAllSlots(t *testing.T) {
	for all, want := range map[int][4]int{256: {24, 168, 32, 32}, 16: {9, 3, 2, 2}, 4: {2, 1, 1, 0}, 1: {1, 0, 0, 0}} {
		g := gate.New(all)
		got := [4]int{
			len(fill(g, "large", gate.Need{Source: "bronze", Target: "gold", Large: true})),
			len(fill(g, "small", gate.Need{Source: "bronze", Target: "gold"})),
			len(fill(g, "same source", gate.Need{Source: "bronze", Target: "silver"})),
			len(fill(g, "others", gate.Need{Source: "silver", Target: "tape"})),
		}
		if got != want {
			t.Errorf("of %d slots: %v, want %v", all, got, want)
		}
	}
}

func TestWhoWaitsIsCalledOnceInTurnAndFindsItsSlot(t *testing.T) {
	g := gate.New(1)
	need := gate.Need{Source: "bronze", Target: "gold"}
	var called []string
	take := func(key string) *gate.Slot {
		return g.Take(key, need, never, calls(func() { called = append(called, key) }))
	}
	first := take("a")
	if first == nil || take("b") != nil || take("c") != nil || !g.Full() {
		t.Fatal("one slot")
	}
	first.Free()
	if !slices.Equal(called, []string{"b"}) {
		t.Fatalf("called: %v", called)
	}
	if take("d") != nil {
		t.Fatal("the slot is kept for b")
	}
	b := take("b")
	if b == nil {
		t.Fatal("b was called in vain")
	}
	b.Free()
	take("c").Free()
	take("d").Free()
	if !slices.Equal(called, []string{"b", "c", "d"}) {
		t.Errorf("called: %v", called)
	}
}

func TestASlotWhoseWaiterDoesNotComeIsGivenToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(1)
		need := gate.Need{Source: "bronze", Target: "gold"}
		first := g.Take("a", need, never, waits)
		g.Take("gone", need, never, waits)
		called := false
		g.Take("b", need, never, calls(func() { called = true }))
		first.Free()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !called || g.Take("b", need, never, waits) == nil {
			t.Error("nobody has the slot")
		}
		time.Sleep(time.Minute) // a slot that was taken does not expire
		if !g.Full() {
			t.Error("b has lost its slot")
		}
	})
}

func TestASlotWhoseWaiterHasLostItsEntryGoesToTheNextAtOnce(t *testing.T) {
	g := gate.New(1)
	need := gate.Need{Source: "bronze", Target: "gold"}
	first := g.Take("a", need, never, waits)
	for i := range 5 {
		g.Take(fmt.Sprint("lost", i), need, never, func() bool { return false })
	}
	called := false
	g.Take("b", need, never, calls(func() { called = true }))
	first.Free()
	if !called || g.Take("b", need, never, waits) == nil {
		t.Error("b does not have the slot")
	}
}

func TestSlotsOfATierThatHangsDoNotCountUntilItAnswers(t *testing.T) {
	g := gate.New(16)
	hung := 0
	for i := range 12 {
		if g.Take(fmt.Sprint(i), gate.Need{Source: "bronze", Target: "gold"}, func() { hung++ }, waits) == nil {
			t.Fatal("12 of 16 fit")
		}
	}
	called := false
	if g.Take("x", gate.Need{Source: "bronze", Target: "gold"}, never, calls(func() { called = true })) != nil {
		t.Fatal("13 of 16 for one target")
	}
	g.SetHanging("gold", true)
	if hung != 12 || !called || g.Hanging("gold") != 13 { // with the one that is kept for the one that was called
		t.Errorf("%d were told, the one that waits: %v, %d hang", hung, called, g.Hanging("gold"))
	}
	g.Take("x", gate.Need{Source: "bronze", Target: "gold"}, never, waits).Free()
	others := append(fill(g, "s", gate.Need{Source: "bronze", Target: "silver"}), fill(g, "t", gate.Need{Source: "tape", Target: "bronze"})...)
	if len(others) != 14 {
		t.Errorf("%d others", len(others))
	}
	if n := g.Hanging("bronze"); n != 0 {
		t.Errorf("%d hang on a tier that does not", n)
	}
	g.SetHanging("gold", false)
	if g.Take("y", gate.Need{Source: "tape", Target: "silver"}, never, waits) != nil {
		t.Error("they count again")
	}
}

func TestASlotGrowsOnlyWhereALargeOneIsFree(t *testing.T) {
	g := gate.New(4)
	need := gate.Need{Source: "bronze", Target: "gold"}
	large := need
	large.Large = true
	held := g.Take("l1", large, never, waits)
	g.Take("l2", large, never, waits)
	small := g.Take("a", need, never, waits)
	called := false
	if small.Grow(calls(func() { called = true })) {
		t.Fatal("there is no large slot")
	}
	small.Free()
	if called {
		t.Fatal("there is none yet")
	}
	held.Free()
	if !called {
		t.Fatal("there is one")
	}
	if s := g.Take("a", need, never, waits); s == nil || !s.Grow(waits) {
		t.Error("it has the large slot")
	}
}

func TestWhoNeedsNoSlotAnyMoreGivesItToTheNext(t *testing.T) {
	g := gate.New(1)
	need := gate.Need{Source: "bronze", Target: "gold"}
	var called []string
	take := func(key string) *gate.Slot {
		return g.Take(key, need, never, calls(func() { called = append(called, key) }))
	}
	first := take("a")
	for _, key := range []string{"b", "c", "d"} {
		if take(key) != nil {
			t.Fatal("one slot")
		}
	}
	g.Leave("c") // it is in the queue
	first.Free()
	g.Leave("b") // its slot is kept for it
	if !slices.Equal(called, []string{"b", "d"}) {
		t.Fatalf("%v were called", called)
	}
	last := take("d")
	if last == nil {
		t.Fatal("no slot was kept")
	}
	g.Leave("d") // it has taken its slot
	if !g.Full() {
		t.Error("the slot is free before its end")
	}
	last.Free()
	if g.Full() {
		t.Error("the slot is not free")
	}
}
