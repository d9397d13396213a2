package outage_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/outage"
)

// logged is what an Outage of commits has logged.
type logged struct{ *observer.ObservedLogs }

func (l logged) want(t *testing.T, what string, begun, ended int) {
	t.Helper()
	b, e := l.FilterMessage("commits wait and are tried again").Len(), l.FilterMessage("commits wait no more").Len()
	if b != begun || e != ended {
		t.Errorf("%s: logged %d times that it fails, %d times that it is over; want %d and %d", what, b, e, begun, ended)
	}
}

func watch() (*outage.Outage, logged) {
	core, logs := observer.New(zap.InfoLevel)
	return outage.New("commits", zap.New(core)), logged{logs}
}

// fail fails ten times a second for so long.
func fail(o *outage.Outage, d time.Duration) {
	for range d / (100 * time.Millisecond) {
		o.Failed(errors.New("no"))
		time.Sleep(100 * time.Millisecond)
	}
}

func TestWhatFailsIsLoggedWhenItBeginsOnceAMinuteWhileItLastsAndWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, l := watch()
		o.Succeeded()
		l.want(t, "nothing has failed", 0, 0)
		fail(o, 50*time.Second)
		l.want(t, "it has begun", 1, 0)
		fail(o, 5*time.Minute)
		l.want(t, "it lasts", 6, 0)
		o.Succeeded()
		o.Succeeded()
		l.want(t, "it is over", 6, 1)
		time.Sleep(15 * time.Second)
		fail(o, time.Second)
		l.want(t, "another one begins, soon after", 7, 1)
		o.Succeeded()
		l.want(t, "the other one is over", 7, 2)
	})
}

func TestWhatFailsAndSucceedsByTurnsIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, l := watch()
		for range 5 * 60 {
			o.Note(errors.New("no"))
			time.Sleep(time.Second / 2)
			o.Note(nil)
			time.Sleep(time.Second / 2)
		}
		l.want(t, "five minutes", 5, 5)
	})
}

func TestACheckHasTheLastErrorWithoutItsSubjectUntilItIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, l := watch()
		o.Failed(fmt.Errorf("commit: %w", context.Canceled))
		if err := o.Check(t.Context()); err != nil || o.Rests() {
			t.Errorf("a caller that gives up is no failure: %v", err)
		}
		o.Failed(fault.New(fault.Unavailable, "commit", "item 7", errors.New("read-only")))
		if err := o.Check(t.Context()); err == nil || err.Error() != "commit: read-only" || !o.Rests() {
			t.Errorf("%v", err)
		}
		time.Sleep(16 * time.Second)
		if err := o.Check(t.Context()); err != nil {
			t.Errorf("nobody tries any more: %v", err)
		}
		l.want(t, "nobody tries any more", 1, 1)
	})
}
