package event

import (
	"strconv"
	"strings"
)

// Newer tells whether entry id a is newer than b, where both are of one stream. Ids are two numbers of up to 64 bits, so they
// are compared as digits. An empty id is older than any. It is stream.Newer for those who know no Redis.
func Newer(a, b string) bool {
	am, as, _ := strings.Cut(a, "-")
	bm, bs, _ := strings.Cut(b, "-")
	if am != bm {
		return longer(am, bm)
	}
	return longer(as, bs)
}

func longer(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a > b
}

// validEntryID tells whether s is an id as Redis writes it: two numbers of up to 64 bits, joined by a hyphen.
func validEntryID(s string) bool {
	ms, seq, ok := strings.Cut(s, "-")
	return ok && number64(ms) && number64(seq)
}

func number64(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == s
}
