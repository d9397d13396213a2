package fsys

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAFilesOwnErrorComesBeforeASharedError(t *testing.T) {
	shared, own := &SharedError{unix.EIO}, error(unix.ENOSPC)
	for _, c := range []struct {
		errs []error
		at   int
		want error
	}{
		{nil, 0, nil},
		{[]error{nil, nil}, 0, nil},
		{[]error{nil, shared}, 1, shared},
		{[]error{shared, nil, own}, 2, own},
		{[]error{own, shared}, 0, own},
	} {
		if at, err := pickError(c.errs); at != c.at || !errors.Is(err, c.want) {
			t.Errorf("%v: %d, %v", c.errs, at, err)
		}
	}
}

func TestKernelReleasesAreComparedByTheirNumbers(t *testing.T) {
	for release, want := range map[string]bool{
		"5.17.0": true, "5.16.20-generic": false, "5.8": false, "6.1.0-13-amd64": true, "10.0": true, "4.19": false, "x": false, "": false,
	} {
		if isVersion(release, 5, 17) != want {
			t.Errorf("%q", release)
		}
	}
}
