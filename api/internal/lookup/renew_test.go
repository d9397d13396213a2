package lookup

import (
	"testing"
	"time"
)

func TestARowIsRenewedLongerWhereThatWouldHaveSavedAQuery(t *testing.T) {
	for _, c := range []struct {
		most int
		age  time.Duration // when it is requested again
		want int
		why  string
	}{
		{2, fresh / 2, 2, "it was there"},
		{2, 2 * time.Second, 4, "two renewals more would have kept it"},
		{4, 4 * time.Second, 8, "four more would have"},
		{2, 3 * time.Second, 2, "two more would not have"},
		{8, 2 * time.Second, 2, "it is kept longest, and that was in vain"},
		{8, time.Hour, 2, "it was not asked for"},
	} {
		if got := (&entry{maxIdle: c.most}).nextMaxIdle(c.age); got != c.want {
			t.Errorf("%d renewals, requested after %v: %d, want %d, because %s", c.most, c.age, got, c.want, c.why)
		}
	}
}
