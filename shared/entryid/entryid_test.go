package entryid_test

import (
	"testing"

	"github.com/tierflow/tierflow/shared/entryid"
)

func TestTheNewerOfTwoEntriesIsFoundByDigits(t *testing.T) {
	ascending := []string{"", "0-0", "0-1", "0-9", "0-10", "9-1", "9-10", "10-0", "10-18446744073709551614", "10-18446744073709551615",
		"1795392109598-0", "9007199254740992-0", "9007199254740993-0", "9223372036854775808-0", "18446744073709551615-18446744073709551615"}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := entryid.Newer(a, b); got != (i > j) {
				t.Errorf("Newer(%q, %q) is %v", a, b, got)
			}
		}
	}
}

func TestAnIdIsValidOnlyAsRedisWritesIt(t *testing.T) {
	for id, want := range map[string]bool{
		"0-0": true, "1732318370000-12": true, "18446744073709551615-18446744073709551615": true,
		"": false, "1": false, "1-": false, "-1": false, "01-0": false, "1-00": false, "+1-0": false, "1-0 ": false, "1-0-0": false,
		"18446744073709551616-0": false, "1-x": false,
	} {
		if got := entryid.Valid(id); got != want {
			t.Errorf("Valid(%q) is %v", id, got)
		}
	}
}
