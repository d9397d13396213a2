package state

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tierflow/tierflow/shared/entryid"
	"github.com/tierflow/tierflow/shared/fault"
)

// Ref names an entry of one kind of stream, such as dead, over all partitions. Refs have the order of entry ids, and of
// partitions where two ids are equal. The zero Ref is before all others.
type Ref struct {
	Partition int
	ID        string
}

// Text is the form that users see: the entry's id. With several partitions the partition stands in front,
// p07:1732318370000-0.
func (r Ref) Text(k Keys) string {
	if k.Partitions() == 1 {
		return r.ID
	}
	return PartitionName(r.Partition) + ":" + r.ID
}

// ParseRef reads what Text writes. fault.Malformed: it is something else.
func ParseRef(k Keys, s string) (Ref, error) {
	bad := func() (Ref, error) {
		example := Ref{ID: "1732318370000-0"}.Text(k)
		return Ref{}, fault.New(fault.Malformed, "", "", fmt.Errorf("%q is not the id of an entry, such as %s", s, example))
	}
	r := Ref{ID: s}
	if k.Partitions() > 1 {
		name, id, found := strings.Cut(s, ":")
		p, err := strconv.Atoi(strings.TrimPrefix(name, "p"))
		if !found || err != nil || p < 0 || p >= k.Partitions() || name != PartitionName(p) {
			return bad()
		}
		r = Ref{p, id}
	}
	if !ValidEntryID(r.ID) {
		return bad()
	}
	return r, nil
}

// Compare is negative where r is before o, 0 where they are equal, else positive.
func (r Ref) Compare(o Ref) int {
	switch {
	case entryid.Newer(o.ID, r.ID):
		return -1
	case entryid.Newer(r.ID, o.ID):
		return 1
	}
	return r.Partition - o.Partition
}

// start is where XRANGE and XPENDING begin in partition p to return what comes after r.
func (r Ref) start(p int) string {
	switch {
	case r.ID == "":
		return "-"
	case p <= r.Partition:
		return "(" + r.ID
	}
	return r.ID
}

// ValidEntryID reports whether s is the id of an entry: two numbers with a dash between.
func ValidEntryID(s string) bool {
	ms, seq, ok := strings.Cut(s, "-")
	digits := func(s string) bool {
		return s != "" && len(s) <= 20 && strings.Trim(s, "0123456789") == ""
	}
	return ok && digits(ms) && digits(seq)
}
