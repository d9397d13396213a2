package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTheDemoRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"nonsense"}, {"serve", "nonsense"}, {"--nonsense"}, {"--url", "localhost:5000"}, {"--view-window", "soon"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || out.Len() > 0 || !strings.HasPrefix(errs.String(), "demo: ") {
			t.Errorf("demo %q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
}
