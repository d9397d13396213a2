package item_test

import (
	"math/big"
	"regexp"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/item"
)

var numbers = []struct {
	in        string
	id, count bool
}{
	{"0", false, true}, {"1", true, true}, {"7", true, true}, {"10", true, true}, {"999999999999999999", true, true},
	{"9223372036854775807", true, true}, {"9223372036854775808", false, false}, {"9999999999999999999", false, false},
	{"10000000000000000000", false, false}, {"18446744073709551616", false, false}, {"", false, false}, {"00", false, false},
	{"01", false, false}, {"-1", false, false}, {"-0", false, false}, {"+1", false, false}, {" 1", false, false}, {"1 ", false, false},
	{"1\n", false, false}, {"1\x00", false, false}, {"1.0", false, false}, {"1e3", false, false}, {"1_000", false, false},
	{"0x1f", false, false}, {"1,000", false, false}, {"١", false, false}, {"１", false, false}, {"²", false, false}, {"abc", false, false},
}

func TestIDsAndCountsAllowOneFormOnly(t *testing.T) {
	for _, c := range numbers {
		id, err := item.ParseID(c.in)
		if (err == nil) != c.id || err == nil && id.String() != c.in || err != nil && (id != 0 || !strings.Contains(err.Error(), "from 1 to 9223372036854775807")) {
			t.Errorf("ParseID(%q) is %d, %v", c.in, id, err)
		}
		count, err := item.ParseCount(c.in)
		if (err == nil) != c.count || err == nil && count.String() != c.in || err != nil && (count != 0 || !strings.Contains(err.Error(), "from 0 to 9223372036854775807")) {
			t.Errorf("ParseCount(%q) is %d, %v", c.in, count, err)
		}
	}
}

// The forms of docs/formats.md, as regular expressions.
var (
	idForm    = regexp.MustCompile(`^[1-9][0-9]{0,18}$`)
	countForm = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})$`)
	largest   = big.NewInt(1<<63 - 1)
)

func FuzzIDsAndCountsHaveTheFormsOfTheContract(f *testing.F) {
	for _, c := range numbers {
		f.Add(c.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fits := func(form *regexp.Regexp) bool {
			n, ok := new(big.Int).SetString(s, 10)
			return form.MatchString(s) && ok && n.Cmp(largest) <= 0
		}
		id, err := item.ParseID(s)
		if (err == nil) != fits(idForm) || err == nil && id.String() != s {
			t.Errorf("ParseID(%q) is %d, %v", s, id, err)
		}
		count, err := item.ParseCount(s)
		if (err == nil) != fits(countForm) || err == nil && count.String() != s {
			t.Errorf("ParseCount(%q) is %d, %v", s, count, err)
		}
	})
}
