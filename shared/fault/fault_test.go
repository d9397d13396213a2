package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/tierflow/tierflow/shared/fault"
)

func TestAnErrorNamesOperationSubjectCauseAndHint(t *testing.T) {
	cause := errors.New("the disk is full")
	for want, e := range map[string]*fault.Error{
		"publish a/b: the disk is full (free some space)": {Kind: fault.NoSpace, Op: "publish", Subject: "a/b", Err: cause, Hint: "free some space"},
		"publish: the disk is full":                       {Kind: fault.NoSpace, Op: "publish", Err: cause},
		"no-space a/b":                                    {Kind: fault.NoSpace, Subject: "a/b"},
		"no-space":                                        {Kind: fault.NoSpace},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

func TestTheKindOfAnErrorIsTheKindOfTheOutermostError(t *testing.T) {
	inner := fault.New(fault.NoSpace, "write", "", io.ErrShortWrite)
	outer := fault.New(fault.Unavailable, "move", "7", fmt.Errorf("copy: %w", inner))
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{nil, ""}, {io.EOF, fault.Internal}, {inner, fault.NoSpace}, {outer, fault.Unavailable}, {fmt.Errorf("x: %w", inner), fault.NoSpace},
		{errors.Join(io.EOF, inner), fault.NoSpace},
	} {
		if got := fault.KindOf(c.err); got != c.want {
			t.Errorf("%v is %q, not %q", c.err, got, c.want)
		}
		if c.err != nil && !fault.Is(c.err, c.want) || fault.Is(c.err, fault.Busy) {
			t.Errorf("Is is wrong about %v", c.err)
		}
	}
	if fault.Is(nil, "") {
		t.Error("nil is an error")
	}
	if !errors.Is(outer, io.ErrShortWrite) {
		t.Error("the cause is hidden")
	}
}
