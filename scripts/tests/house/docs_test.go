package house_test

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// What the docs name must exist. A doc is any *.md of the repository. Of its text this is checked:
//
//   - the target of every link that is no URL: a file or folder, from the doc's own folder;
//   - in code blocks and between backticks: every TIERFLOW_ word is the variable of a setting, or is read by tests,
//     and every word like "./folder/file" exists, from the root;
//   - between backticks alone, each word by its form:
//     "<program> <verb>" and "--flag"  one of the programs' verbs and flags
//     "/path", "GET /path"             occurs in the sources, as openapi.yaml and the api's routes have it
//     "folder/file"                    exists where the first part is a folder of the root; else occurs in the sources
//     "pkg.Name", "pkg.Type.Member"    is declared in our package pkg; for a package of others, occurs in the sources
//     "a-word", "snake_case", "a.b"    each part occurs in the sources as a whole word
//
// The sources are all files of the repository but the docs and this package. A span that runs another program (curl,
// redis-cli, ...), and a word in any other form (with brackets, quotes, ...), is left to the reader.
func TestWhatTheDocsNameExists(t *testing.T) {
	d := newDocs(t)
	docs := textFiles(t, d.root, func(path string) bool { return filepath.Ext(path) == ".md" })
	if !slices.Contains(docs, "README.md") {
		t.Error("there is no README.md")
	}
	for _, doc := range docs {
		text, err := os.ReadFile(filepath.Join(d.root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range d.check(doc, string(text)) {
			t.Errorf("%s: %s", doc, problem)
		}
	}
}

func TestTheDocsCheckFindsWhatDoesNotExist(t *testing.T) {
	d := newDocs(t)
	for _, wrong := range []string{
		"[a](docs/nothing.md)", "`TIERFLOW_NOTHING`", "```\nTIERFLOW_NOTHING=1 api serve\n```", "```\n./scripts/nothing\n```",
		"`committer nothing`", "`api nothing`", "`relocator verify --nothing`", "`--nothing`", "`/v1/nothing`", "`GET /v1/nothing/{cid}`",
		"`shared/nothing`", "`relocator/internal/nothing/x.go`", "`state.Nothing`", "`state.Store.Nothing`", "`nothings.Store`",
		"`nothing_here`", "`no-such-reason`", "`update_history.nothing_here`", "`tierflow:nothingness`",
	} {
		if len(d.check("README.md", wrong)) == 0 {
			t.Errorf("nothing is found wrong with %s", wrong)
		}
	}
	for _, right := range []string{
		"[a](docs/design.md#words)", "[a](https://example.org)", "`TIERFLOW_MIN_IDLE`", "`TIERFLOW_TEST_REDIS_URL`",
		"```\n$ ./scripts/quickstart --once\n```", "`committer migrate`", "`api serve`", "`relocator verify --repair`", "`--once`",
		"`GET /v1/contents/{cid}`", "`/post_sentence`", "`shared/fault`", "`shared/fault/`", "`github.com/redis/go-redis/v9`",
		"`state.Store`", "`state.Store.Emit`", "`state.Keys.Views`", "`policy.Level.TierID`", "`update_history`",
		"`redis-cli XRANGE tierflow:views - +`", "`level.path`", "`tierflow:views`", "`(cid, count)`",
	} {
		if problems := d.check("README.md", right); len(problems) > 0 {
			t.Errorf("%s: %v", right, problems)
		}
	}
}

// docs holds what exists.
type docs struct {
	root     string
	sources  string          // the text of all sources
	words    map[string]bool // the words of sources; letters, digits, _ and - make a word
	programs map[string]map[string]bool
	flags    map[string]bool
	settings map[string]bool
	packages map[string]map[string]bool // by package name: Name and Type.Member
}

var (
	codeBlock = regexp.MustCompile("(?s)```.*?```")
	codeSpan  = regexp.MustCompile("`[^`]+`")
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	setting   = regexp.MustCompile(`\bTIERFLOW_[A-Z_]*[A-Z]`)
	fromRoot  = regexp.MustCompile(`(?:^|\s)\./([\w.-]+/[\w./-]+)`)
	flag      = regexp.MustCompile(`^--([a-z][a-z-]*)`)
	httpPath  = regexp.MustCompile(`^/[\w./{}-]+`)
	goName    = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[A-Z]\w*){1,2}$`)
	filePath  = regexp.MustCompile(`^[\w.-]+(/[\w.-]+)+/?$`)
	plain     = regexp.MustCompile(`^[\w-]+([.:][\w-]+)*:?$`)
)

func (d *docs) check(doc, text string) (problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, m := range link.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if strings.Contains(target, "://") || target == "" {
			continue
		}
		if !d.exists(filepath.Join(filepath.Dir(doc), target)) {
			problem("the link to %s leads nowhere", m[1])
		}
	}
	blocks := codeBlock.FindAllString(text, -1)
	spans := codeSpan.FindAllString(codeBlock.ReplaceAllString(text, ""), -1)
	for _, code := range slices.Concat(blocks, spans) {
		code = strings.Trim(code, "`")
		for _, name := range setting.FindAllString(code, -1) {
			if !d.settings[name] {
				problem("there is no setting %s", name)
			}
		}
		for _, m := range fromRoot.FindAllStringSubmatch(code, -1) {
			if !d.exists(m[1]) {
				problem("there is no ./%s", m[1])
			}
		}
	}
	for _, s := range spans {
		if reason := d.span(strings.Trim(s, "`")); reason != "" {
			problem("%s: %s", s, reason)
		}
	}
	return problems
}

func (d *docs) exists(path string) bool {
	_, err := os.Stat(filepath.Join(d.root, path))
	return err == nil
}

// span returns what is wrong with the words between two backticks, or "" where nothing is.
func (d *docs) span(text string) string {
	words := strings.Fields(text)
	if len(words) == 0 {
		return ""
	}
	verbs, ours := d.programs[words[0]]
	if ours && len(words) > 1 && !strings.HasPrefix(words[1], "-") && !verbs[words[1]] {
		return fmt.Sprintf("%s has no verb %s", words[0], words[1])
	}
	if !ours && len(words) > 1 && !d.words[words[0]] {
		return "" // it runs another program
	}
	for i, word := range words {
		if i > 0 && slices.Contains([]string{"curl", "redis-cli", "mysql", "mariadb", "docker"}, words[0]) && !strings.Contains(word, ":") {
			continue
		}
		if reason := d.word(word); reason != "" {
			return reason
		}
	}
	return ""
}

func (d *docs) word(word string) string {
	switch {
	case strings.HasPrefix(word, "TIERFLOW_"), strings.HasPrefix(word, "./"):
		return "" // checked with the code blocks
	case flag.MatchString(word):
		if name := flag.FindStringSubmatch(word)[1]; !d.flags[name] {
			return "no program has the flag --" + name
		}
	case httpPath.MatchString(word):
		if path := httpPath.FindString(word); !strings.Contains(d.sources, path) {
			return path + " does not occur in the sources"
		}
	case goName.MatchString(word):
		pkg, name, _ := strings.Cut(word, ".")
		if declared, ours := d.packages[pkg]; ours && !declared[name] {
			return fmt.Sprintf("package %s declares no %s", pkg, name)
		} else if !ours && !strings.Contains(d.sources, word) {
			return fmt.Sprintf("there is no package %s, and the sources do not use %s", pkg, word)
		}
	case filePath.MatchString(word):
		first, _, _ := strings.Cut(word, "/")
		if d.exists(first) && !d.exists(word) || !d.exists(first) && !strings.Contains(d.sources, strings.TrimSuffix(word, "/")) {
			return "there is no such file"
		}
	case plain.MatchString(word):
		for _, part := range strings.FieldsFunc(word, func(r rune) bool { return r == '.' || r == ':' }) {
			if !d.words[part] {
				return part + " does not occur in the sources"
			}
		}
	}
	return ""
}

func newDocs(t *testing.T) *docs {
	t.Helper()
	d := &docs{root: root(t), words: map[string]bool{}, programs: map[string]map[string]bool{}, flags: map[string]bool{},
		settings: map[string]bool{}, packages: map[string]map[string]bool{}}
	var all strings.Builder
	for _, path := range textFiles(t, d.root, func(path string) bool {
		return filepath.Ext(path) != ".md" && !strings.HasPrefix(path, "scripts/tests/house/")
	}) {
		b, err := os.ReadFile(filepath.Join(d.root, path))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
		for _, name := range setting.FindAllString(string(b), -1) {
			if strings.HasPrefix(name, "TIERFLOW_TEST_") {
				d.settings[name] = true
			}
		}
	}
	d.sources = all.String()
	separate := func(also string) func(rune) bool {
		return func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_"+also, r)
		}
	}
	for _, word := range slices.Concat(strings.FieldsFunc(d.sources, separate("-")), strings.FieldsFunc(d.sources, separate(""))) {
		d.words[word] = true
	}
	for _, p := range packages(t) {
		if d.packages[p.Name] == nil {
			d.packages[p.Name] = map[string]bool{}
		}
		for _, f := range p.syntax(t) {
			d.declarations(d.packages[p.Name], f)
			program, _, _ := strings.Cut(p.path(), "/") // a service has its module's name
			if p.Name == "main" {
				program = filepath.Base(p.Dir)
			}
			d.arguments(program, f)
		}
	}
	return d
}

// declarations adds what the file declares at package level, with the fields and methods of types.
func (d *docs) declarations(names map[string]bool, f *ast.File) {
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			name := decl.Name.Name
			if decl.Recv != nil {
				receiver := decl.Recv.List[0].Type
				if star, ok := receiver.(*ast.StarExpr); ok {
					receiver = star.X
				}
				if id, ok := receiver.(*ast.Ident); ok {
					name = id.Name + "." + name
				}
			}
			names[name] = true
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					for _, id := range spec.Names {
						names[id.Name] = true
					}
				case *ast.TypeSpec:
					names[spec.Name.Name] = true
					ast.Inspect(spec.Type, func(n ast.Node) bool {
						if field, ok := n.(*ast.Field); ok {
							for _, id := range field.Names {
								names[spec.Name.Name+"."+id.Name] = true
							}
						}
						return true
					})
				}
			}
		}
	}
}

// arguments adds the flags, verbs and variables of kong's structs, and the literal names given to package flag.
func (d *docs) arguments(program string, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil {
			return true
		}
		tag := reflect.StructTag(strings.Trim(field.Tag.Value, "`"))
		if _, ok := tag.Lookup("help"); !ok {
			return true
		}
		for _, name := range strings.Split(tag.Get("env"), ",") {
			d.settings[name] = true
		}
		for _, id := range field.Names {
			name := tag.Get("name")
			if name == "" {
				name = kebab(id.Name)
			}
			if _, verb := tag.Lookup("cmd"); !verb {
				d.flags[name] = true
			} else {
				if d.programs[program] == nil {
					d.programs[program] = map[string]bool{}
				}
				d.programs[program][name] = true
			}
		}
		return true
	})
}

// kebab returns kong's name of a field: ReleaseGrace becomes release-grace.
func kebab(field string) string {
	var b strings.Builder
	for i, r := range field {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
