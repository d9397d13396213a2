// Package item has the id and the view count of an item, and the rules for filenames. It imports only the standard library.
package item

import (
	"errors"
	"strconv"
)

// ID names one item, 1 to 2^63-1. It is the `cid` of HTTP, Redis and MySQL.
type ID int64

// Count is an item's current view count, 0 to 2^63-1. It is an absolute number that rises and falls.
type Count int64

var (
	errID    = errors.New("must be a whole number from 1 to 9223372036854775807, without sign or leading zeros")
	errCount = errors.New("must be a whole number from 0 to 9223372036854775807, without sign or leading zeros")
)

// ParseID reads the decimal form [1-9][0-9]{0,18}, at most 2^63-1. The error says what is allowed.
func ParseID(s string) (ID, error) {
	n, ok := parse(s)
	if !ok || n == 0 {
		return 0, errID
	}
	return ID(n), nil
}

// ParseCount reads the decimal form 0|[1-9][0-9]{0,18}, at most 2^63-1. The error says what is allowed.
func ParseCount(s string) (Count, error) {
	n, ok := parse(s)
	if !ok {
		return 0, errCount
	}
	return Count(n), nil
}

// parse refuses signs and leading zeros, which strconv.ParseInt accepts.
func parse(s string) (int64, bool) {
	if s == "" || len(s) > 19 || (s[0] == '0' && len(s) > 1) {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

func (id ID) String() string   { return strconv.FormatInt(int64(id), 10) }
func (c Count) String() string { return strconv.FormatInt(int64(c), 10) }
