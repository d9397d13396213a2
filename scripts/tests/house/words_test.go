package house_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// retired are words that Tierflow does not use any more, each with the word that it uses instead.
var retired = []struct{ word, instead string }{
	{`apprais(e|es|ed|er|al|als|ing)`, "re-evaluate"},
	{`bur(y|ies|ied|ying|ial)`, "becomes a dead letter"},
	{`coming`, "pending, wanted or next"},
	{`content|(%d|[0-9]+|all|many|some) contents`, "item, or bytes"},
	{`wan(e|es|ed|ing)`, "fade, fall or drain"},
	{`crews?`, "workers"},
	{`trips?`, "round trip, wait or call"},
	{`troubles?`, "fault or error"},
	{`sight(s|ed|ing|ings)?`, "first seen"},
	{`journal(s|ed)?`, "record or log"},
	{`kick(s|ed|ing)?`, "wake"},
	{`lanes?`, "queue"},
	{`hand(s|ed|ing)?( \w+)?[- ]?overs?`, "reassign, or serve a file"},
	{`the news`, "what is published"},
	{`for the eye`, "visible"},
	{`shared/share`, "shared/assignment"},
	{`shared/content`, "shared/item"},
}

// retiredNames are identifiers that Tierflow does not use any more. Their words are English in a sentence.
var retiredNames = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\b\w+(?:Least|Most)\b|\b(?:least|most)[A-Z]\w*`), "min or max"},
	{regexp.MustCompile(`\bmarks\(`), "placeholders"},
}

// fixedNames hold a retired word, and others outside depend on them: protocols, libraries, and Tierflow's own formats.
var fixedNames = regexp.MustCompile(`(?i)round[- ]?trips?` +
	`|content-?(type|length|encoding|security)|(no|partial|text)content|content=` + // HTTP, libraries, HTML
	"|content_level|history_content|content:|unknown-content|schemas/content|the word content" + // MySQL, Redis, openapi.yaml
	"|ingest_trip_seconds") // a metric

// exceptions are files in which a word has another meaning, or in which others outside depend on it.
var exceptions = []struct{ file, word, reason string }{
	{"shared/catalog/", "appraisal", "the name of a table in an earlier schema"},
	{"docs/operations.md", "appraisal", "the name of a table in an earlier schema"},
	{"CHANGELOG.md", "appraisal", "the name of a table in an earlier schema"},
	{"docs/design.md", "journal", "of ext4"},
	{"docs/performance.md", "journal", "of ext4"},
	{"relocator/internal/fsys/", "journal", "of a file system"},
	{"relocator/internal/powercut/", "journal", "of a file system"},
	{"relocator/internal/powercut/", "journals", "of file systems"},
	{"scripts/benchmarks/machine.go", "journal", "of ext4"},
	{"scripts/benchmarks/machine.go", "journaled", "of ext4"},
	{"api/internal/httpapi/shapes_test.go", "content", "a schema's name"},
	{"LICENSE", "content", "of a file, in the text of the licence"},
	{"scripts/tests/house/words_test.go", "", "the list itself"},
}

// unchecked are files and folders that still use retired words.
var unchecked = []string{}

// findRetired returns the retired words of a text, in lower case, with what to write instead.
func findRetired(text string) (found [][2]string) {
	for _, r := range retiredNames {
		for _, name := range r.pattern.FindAllString(text, -1) {
			found = append(found, [2]string{name, r.instead})
		}
	}
	text = splitIdentifiers.ReplaceAllString(fixedNames.ReplaceAllString(text, ""), "$1 $2")
	for _, m := range anyRetired().FindAllStringSubmatch(text, -1) {
		for i, r := range retired {
			if word := m[1+i]; word != "" {
				found = append(found, [2]string{strings.ToLower(word), r.instead})
			}
		}
	}
	return found
}

// anyRetired has a group for each retired word, in their order. A word may be a part of an identifier, so case begins a word
// as well.
var anyRetired = sync.OnceValue(func() *regexp.Regexp {
	var words []string
	for _, r := range retired {
		words = append(words, "("+strings.ReplaceAll(strings.ReplaceAll(r.word, "(?:", "("), "(", "(?:")+")")
	}
	return regexp.MustCompile(`(?i)(?:^|[^a-z])(?:` + strings.Join(words, "|") + `)(?:[^a-z]|$)`)
})

var splitIdentifiers = regexp.MustCompile(`([a-z])([A-Z])`)

// A glossary that grows is read by nobody. A new term needs the place of an older one.
func TestTheGlossaryHasAtMost25Terms(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "docs/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "| term | meaning |\n|---|---|\n")
	if n := strings.Count(table, "\n| ") + 1; !found || n > 25 {
		t.Errorf("%v: it has %d terms", found, n)
	}
}

func TestNobodyUsesARetiredWord(t *testing.T) {
	root := root(t)
	read := 0
	for _, path := range textFiles(t, root, func(path string) bool {
		return !slices.Contains([]string{".png", ".sum"}, filepath.Ext(path)) &&
			!slices.ContainsFunc(unchecked, func(area string) bool { return strings.HasPrefix(path, area) })
	}) {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		read++
		for n, line := range strings.Split(string(b), "\n") {
			for _, f := range findRetired(line) {
				allowed := false
				for _, e := range exceptions {
					allowed = allowed || strings.HasPrefix(path, e.file) && (e.word == "" || e.word == f[0])
				}
				if !allowed {
					t.Errorf("%s:%d: %q is not used any more: write %s", path, n+1, f[0], f[1])
				}
			}
		}
	}
	if read < 50 {
		t.Fatalf("the test read only %d files", read)
	}
}

func TestTheCheckForRetiredWordsFindsThem(t *testing.T) {
	for text, want := range map[string]string{
		"the entry is buried": "buried", "handOver(entry)": "hand over", "type Crew struct": "crew", "newLane(5)": "lane",
		"rowsMost": "rowsMost", "mostRows": "mostRows", "atLeast(2)": "atLeast", "at most two, at least one, almost": "",
		"marks(3)": "marks(", "it marks a tier": "", "watermarks(3)": "", "they hand it over": "hand it over",
		"a trip to Redis": "trip", "one roundTrip, two round trips": "", "a strip": "", "catalog.Content(7)": "content",
		"12 contents": "12 contents", "FROM contents": "", "Content-Type: %s": "", "c.NoContent(204)": "", "an incoming view": "",
		"a wake-up, a plane and a lantern": "", "troubleshooting": "",
	} {
		got := ""
		if found := findRetired(text); len(found) > 0 {
			got = found[0][0]
		}
		if got != want {
			t.Errorf("%q: found %q, want %q", text, got, want)
		}
	}
}
