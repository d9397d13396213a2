package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// TestALateReleaseAndALateMoveNeverMeet runs the worst case of two late workers. One is stopped before it begins a release.
// The other has adopted, as its new copy, the very copy that this release would remove. The test runs the case unchanged,
// and then without the rule that protects it. The second run must find the fault: that tests the test.
func TestALateReleaseAndALateMoveNeverMeet(t *testing.T) {
	t.Run("as it stands", func(t *testing.T) {
		for range 2 {
			if err := lateMeeting(t, nil); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("without the generation that a release raises", func(t *testing.T) {
		raise := func(step string, request []byte) []byte {
			if step == "relocator: mysql UPDATE contents SET generation" {
				return bytes.ReplaceAll(request, []byte("generation + 1"), []byte("generation + 0"))
			}
			return request
		}
		for range 10 { // a slow machine may be too late for the lease
			if err := lateMeeting(t, raise); err != nil {
				t.Logf("found: %v", err)
				return
			}
		}
		t.Error("the fault was not found")
	})
}

// lateMeeting returns an error where the row names a place without a file.
func lateMeeting(t *testing.T, rewrite func(string, []byte) []byte) error {
	var mu sync.Mutex
	var releaser, mover *stack.Service
	var stopped at
	reached := map[string]chan struct{}{"release": make(chan struct{}), "move": make(chan struct{})}
	goOnMove := make(chan struct{})
	c := newCampaign(t, 2, 1, 3*shortLease) // enough time for what happens within one lease
	c.d.mu.Lock()
	c.d.rewrite = rewrite
	c.d.mu.Unlock()
	f := c.add(&flow{way: ways[0]})
	c.lookAt(func(a at) verdict {
		mu.Lock()
		switch {
		case a.id == f.id && releaser == nil && a.step == "relocator: fsys mkdir-released":
			releaser, stopped = a.service, a
			mu.Unlock()
			if !c.d.pause(a) {
				t.Errorf("%s was not stopped", a.service.Name)
			}
			close(reached["release"])
			return goOn
		case a.id == f.id && releaser != nil && mover == nil && a.service != releaser && a.step == "relocator: fsys fsync-folder":
			mover = a.service
			mu.Unlock()
			close(reached["move"])
			<-goOnMove // a slow disk
			return goOn
		case releaser != nil && a.service == releaser && a.pid == stopped.pid && a.step == "relocator: redis renewScript":
			mu.Unlock()
			<-goOnMove // a slow network: the process learns late that the lock is lost
			return goOn
		}
		mu.Unlock()
		return goOn
	})
	await := func(what string) {
		select {
		case <-reached[what]:
		case <-time.After(patience):
			t.Fatalf("no process has reached the %s", what)
		}
	}
	c.postLevel(f, "silver")
	await("release") // of the copy on bronze
	c.postLevel(f, "bronze")
	await("move") // back to bronze, where the copy still lies and is adopted
	c.d.resume(stopped)
	gone := until(5*time.Second, func() error {
		if _, err := os.Lstat(c.path(f, "bronze")); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	close(goOnMove)
	if gone != nil {
		t.Logf("the release was too late: %v", gone)
	}
	c.w.must("move back", until(patience, func() error { return c.on(f, "bronze") }))
	_, err := os.Lstat(c.path(f, "bronze"))
	if err != nil && c.on(f, "bronze") == nil {
		return fmt.Errorf("the row names bronze: %w", err)
	}
	c.w.must("settle", until(patience, func() error { return c.w.CheckSettled(context.Background()) }))
	return nil
}

// TestWithoutTheSweepWhatAKilledMoveHasLeftIsFound also tests the tests.
func TestWithoutTheSweepWhatAKilledMoveHasLeftIsFound(t *testing.T) {
	c := newCampaign(t, 2, 1, shortLease)
	f := c.add(&flow{way: ways[1]})
	var mu sync.Mutex
	killed, sweeps := false, 0
	c.lookAt(func(a at) verdict {
		mu.Lock()
		defer mu.Unlock()
		if a.step == "relocator: fsys sweep" {
			sweeps++
			return skip
		}
		if killed || a.id != f.id || a.step != "relocator: fsys publish" {
			return goOn
		}
		killed = c.d.kill(a, func(*stack.Service) {})
		return gone
	})
	c.postLevel(f, f.way.level)
	c.w.must("move", until(patience, func() error { return c.done(f, f.way.level) }))
	c.w.must("settle", until(patience, func() error { return c.w.Settled(context.Background()) }))
	mu.Lock()
	enough := sweeps + 20
	mu.Unlock()
	c.w.must("wait for sweeps", until(patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		if sweeps < enough {
			return fmt.Errorf("%d of %d", sweeps, enough)
		}
		return nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.w.CheckSettled(ctx); err == nil {
		t.Error("the left-over was not found")
	} else {
		t.Logf("found: %v", err)
	}
}
