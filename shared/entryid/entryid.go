// Package entryid knows the ids that Redis gives to the entries of a stream. It imports only the standard library.
package entryid

import (
	"strconv"
	"strings"
)

// Newer reports whether entry id a is newer than b, where both are of one stream. It compares digits, because both numbers of
// an id are unsigned and have up to 64 bits. An empty id is older than any other.
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

// Valid reports whether s is an id as Redis writes it: two numbers of up to 64 bits with a hyphen between.
func Valid(s string) bool {
	ms, seq, ok := strings.Cut(s, "-")
	return ok && number64(ms) && number64(seq)
}

func number64(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == s
}
