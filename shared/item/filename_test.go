package item_test

import (
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/item"
)

func TestAFilenameMayBeAnyCleanRelativePath(t *testing.T) {
	for _, name := range []string{
		"a", "g.mp4", "a/b/c.mp4", "hls/7/seg-0001.ts", "...", "..a", "a..", "a/...", ".hidden", "a/.tierflow", ".tierflowx", ".Tierflow",
		".tierflow2/x", " a", "a b", "a /b", "a\nb", "a\tb", `a\b`, `a"b`, "<script>", "日本語/動画.mp4", "e\u0301", "\u00e9", "😀", "-rf", "~", "*", "%2e%2e",
		"a\u00a0", strings.Repeat("x", 255), strings.Repeat("é", 127) + "x", strings.Repeat("x", 255) + "/" + strings.Repeat("y", 255),
		strings.Repeat("😀/", 349) + "😀😀", // 700 characters
	} {
		if err := item.CheckFilename(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAnErrorSaysWhyAFilenameIsNotAllowed(t *testing.T) {
	for _, c := range []struct{ name, reason string }{
		{"", "empty"}, {"/", "absolute"}, {"/a", "absolute"}, {"//a", "absolute"}, {"a/", "ends with a slash"}, {"a//b", "empty component"},
		{".", `"."`}, {"..", `".."`}, {"./a", `"."`}, {"../a", `".."`}, {"a/./b", `"."`}, {"a/../b", `".."`}, {"a/..", `".."`}, {"a/.", `"."`},
		{".tierflow", "belongs to Tierflow"}, {".tierflow/tmp/x", "belongs to Tierflow"}, {"a\x00b", "NUL"}, {"\x00", "NUL"},
		{"\xff", "UTF-8"}, {"a\xc3", "UTF-8"}, {"\xed\xa0\x80", "UTF-8"}, {"\xc0\xaf", "UTF-8"}, {"a ", "space"}, {" ", "space"}, {"a/b ", "space"},
		{strings.Repeat("x", 256), "256 bytes"}, {"a/" + strings.Repeat("é", 128), "256 bytes"},
		{strings.Repeat("x/", 350) + "x", "701 characters"}, {strings.Repeat("😀/", 350) + "😀", "701 characters"},
	} {
		err := item.CheckFilename(c.name)
		if err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%q: %v, not %s", c.name, err, c.reason)
		}
	}
}
