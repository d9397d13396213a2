package house_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rights are what an account may write to a table, by "account table": INSERT, DELETE, UPDATE, and UPDATE column.
type rights map[string]map[string]bool

func (r rights) add(account, table string, what ...string) {
	key := account + " " + table
	if r[key] == nil {
		r[key] = map[string]bool{}
	}
	for _, w := range what {
		r[key][w] = true
	}
}

func (r rights) String() string {
	var lines []string
	for key, what := range r {
		lines = append(lines, fmt.Sprintf("%s: %s", key, strings.Join(slices.Sorted(maps.Keys(what)), ", ")))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

var (
	writerLine = regexp.MustCompile(`(?m)^//\t(\w+) +(\w+) +((?:INSERT|DELETE|UPDATE).*)$`)
	grantLine  = regexp.MustCompile("(?m)^GRANT (.*) ON tierflow\\.`?(\\w+)`? TO '(\\w+)'")
	updateOf   = regexp.MustCompile(`UPDATE \(([^)]*)\)`)
	wordOf     = regexp.MustCompile(`INSERT|DELETE|UPDATE`)
	insertSQL  = regexp.MustCompile("^\\s*(?:INSERT|REPLACE)(?: IGNORE)? INTO `?(\\w+)`?")
	deleteSQL  = regexp.MustCompile("^\\s*DELETE FROM `?(\\w+)`?")
	updateSQL  = regexp.MustCompile("(?s)^\\s*UPDATE `?(\\w+)`? SET (.*)")
	onKey      = regexp.MustCompile(`ON DUPLICATE KEY UPDATE`)
	assigned   = regexp.MustCompile("`?(\\w+)`? = ")
)

// parseRights reads "INSERT, DELETE, UPDATE (a, b)".
func parseRights(text string) (what []string) {
	for _, m := range updateOf.FindAllStringSubmatch(text, -1) {
		for column := range strings.SplitSeq(m[1], ",") {
			what = append(what, "UPDATE "+strings.TrimSpace(column))
		}
	}
	return append(what, wordOf.FindAllString(updateOf.ReplaceAllString(text, ""), -1)...)
}

func TestEveryColumnIsWrittenOnlyByTheServicesThatTheCatalogNames(t *testing.T) {
	dir := root(t)
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	table, services := rights{}, rights{}
	for _, m := range writerLine.FindAllStringSubmatch(read("shared/catalog/catalog.go"), -1) {
		table.add(m[2], m[1], parseRights(m[3])...)
		if m[2] != "owner" {
			services.add(m[2], m[1], parseRights(m[3])...)
		}
	}
	accounts := rights{}
	for _, m := range grantLine.FindAllStringSubmatch(read("compose/mysql/accounts"), -1) {
		accounts.add(m[3], m[2], parseRights(m[1])...)
	}
	if len(table) < 6 {
		t.Fatalf("the package comment of shared/catalog has only these writers:\n%s", table)
	}
	if services.String() != accounts.String() {
		t.Errorf("the package comment of shared/catalog says\n%s\n\nand compose/mysql/accounts grants\n%s", services, accounts)
	}
	used := map[string]bool{}
	for _, p := range packages(t) {
		service, _, _ := strings.Cut(p.path(), "/")
		if !slices.Contains([]string{"api", "relocator", "committer"}, service) && p.path() != "shared/catalog" || p.path() == forTests {
			continue
		}
		for _, w := range writes(slices.Collect(maps.Values(p.syntax(t)))) {
			if right := allowed(table, w, service, "owner"); right == "" {
				t.Errorf("%s has %s of %s: the package comment of shared/catalog names other writers", p.path(), w.what, w.table)
			} else {
				used[right] = true
			}
		}
	}
	for key, what := range table {
		for w := range what {
			if !used[key+" "+w] {
				t.Errorf("the package comment of shared/catalog says %s: %s, and no statement does that", key, w)
			}
		}
	}
}

// allowed returns the right that lets one of the accounts do a write, or "" where none does.
func allowed(table rights, w write, accounts ...string) string {
	for _, account := range accounts {
		key := account + " " + w.table
		if table[key][w.what] {
			return key + " " + w.what
		}
		if strings.HasPrefix(w.what, "UPDATE ") && table[key]["UPDATE"] {
			return key + " UPDATE"
		}
	}
	return ""
}

func TestTheCheckForSQLFindsWhatIsWritten(t *testing.T) {
	const source = "package x\n" + `const c = "level"
	func f() {
		exec("INSERT INTO contents (cid) VALUES "+many())
		exec("INSERT IGNORE INTO " + c + " (a) VALUES (1)")
		exec("INSERT INTO level_change (id) VALUES (1) " + "ON DUPLICATE KEY UPDATE change_id = ?, after_cid = 0")
		exec("DELETE FROM contents WHERE cid = ?")
		exec("UPDATE ` + "`level`" + ` SET path = ?, max_counts = ? WHERE content_level = ?")
		exec("UPDATE contents SET view_count = CASE cid"+many()+" END WHERE cid IN (1)")
		s.add("UPDATE contents SET generation = generation + 1, update_time = ?")
		s.choose("digest", nil)
		_ = 1 > 0 && exec("DELETE FROM level")
		exec("SELECT 1 FROM contents WHERE view_count = 5")
	}`
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := rights{}
	for _, w := range writes([]*ast.File{f}) {
		got.add("x", w.table, w.what)
	}
	want := `x contents: DELETE, INSERT, UPDATE digest, UPDATE generation, UPDATE update_time, UPDATE view_count
x level: DELETE, INSERT, UPDATE max_counts, UPDATE path
x level_change: INSERT, UPDATE after_cid, UPDATE change_id`
	if got.String() != want {
		t.Errorf("found\n%s", got)
	}
}

// write is what a statement writes: INSERT, DELETE, or UPDATE and a column.
type write struct{ table, what string }

// writes returns what the statements in the string literals of a package write. A column that is passed to a method choose
// is one more column of the function's UPDATE.
func writes(files []*ast.File) (found []write) {
	constants := map[string]string{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 && len(v.Values) == 1 {
				if text := literal(v.Values[0], nil); text != "?" {
					constants[v.Names[0].Name] = text
				}
			}
			return true
		})
	}
	for _, f := range files {
		for _, d := range f.Decls {
			last := "" // the table of the function's last UPDATE
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "choose" && len(n.Args) > 0 && last != "" {
						found = append(found, write{last, "UPDATE " + literal(n.Args[0], constants)})
					}
				case *ast.BinaryExpr, *ast.BasicLit:
					if b, ok := n.(*ast.BinaryExpr); ok && b.Op != token.ADD {
						return true
					}
					ws, table := statement(literal(n.(ast.Expr), constants))
					if found = append(found, ws...); table != "" {
						last = table
					}
					return false
				}
				return true
			})
		}
	}
	return found
}

// statement finds what one statement writes, and the table where it is an UPDATE.
func statement(text string) (ws []write, updated string) {
	columns := func(table, set string) {
		set, _, _ = strings.Cut(set, " WHERE ")
		for _, m := range assigned.FindAllStringSubmatch(set, -1) {
			ws = append(ws, write{table, "UPDATE " + m[1]})
		}
	}
	if m := insertSQL.FindStringSubmatch(text); m != nil {
		ws = append(ws, write{m[1], "INSERT"})
		if at := onKey.FindStringIndex(text); at != nil {
			columns(m[1], text[at[1]:])
		}
	} else if m := deleteSQL.FindStringSubmatch(text); m != nil {
		ws = append(ws, write{m[1], "DELETE"})
	} else if m := updateSQL.FindStringSubmatch(text); m != nil {
		columns(m[1], m[2])
		updated = m[1]
	}
	return ws, updated
}

// literal returns the text of a string expression, with "?" for each part that is not constant.
func literal(e ast.Expr, constants map[string]string) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.Ident:
		if text, ok := constants[e.Name]; ok {
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return literal(e.X, constants) + literal(e.Y, constants)
		}
	}
	return "?"
}
