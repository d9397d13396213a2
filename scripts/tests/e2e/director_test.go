package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/tierflow/tierflow/scripts/testenv/stack"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// directedPrograms is the folder of the services as a director needs them, built once. They have no race detector, because
// they are started hundreds of times. The relocator is its own test binary: it works like the relocator, but asks before
// every operation on files (relocator/cmd/relocator, TestMain).
var (
	directedDir      string
	directedPrograms = sync.OnceValues(func() (dir string, err error) {
		ctx := context.Background()
		directedDir, err = stack.BuildTemp(ctx, stack.BuildOptions{Packages: []string{"./api/cmd/api", "./committer/cmd/committer"}})
		if err != nil {
			return "", err
		}
		root, err := stack.Root()
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(directedDir, stack.Relocator), "./relocator/cmd/relocator")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return directedDir, nil
	})
)

// director sits between the relocators and committers of a stack and all that they touch. It is called before every
// operation on files, and every request to Redis and MySQL and every answer passes through it. So it can end or stop a
// process exactly there, from outside, with the signal that an operator or the kernel would send. The steps are whatever
// the processes do. No list names them, so a new step needs no change here.
type director struct {
	t       *testing.T
	dir     string
	scripts map[string]string // names by SHA-1
	lead    func(at) verdict  // may block; set before the services start

	// rewrite, where set, changes a request on its way, to break a rule of the protocol from outside. The verdict of lead
	// can leave out operations on files.
	rewrite func(step string, request []byte) []byte

	closed chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex
	about map[string][]item.ID // the items that a goroutine or transaction worked on last
	open  map[net.Conn]bool
	lives map[*stack.Service]*sync.Mutex
}

// at is one occurrence of a step.
type at struct {
	service *stack.Service
	pid     int     // of the process that has reached the step
	id      item.ID // the item that the process works on; 0 where that is unknown
	step    string  // such as "relocator: fsys publish", or "committer: mysql COMMIT, answered"
}

type verdict int

const (
	goOn verdict = iota
	skip         // leave the operation on files out
	gone         // the process was ended: the operation or the answer that was next must not happen
)

func newDirector(t *testing.T) *director {
	t.Helper()
	root, err := stack.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tierflow-steps-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	d := &director{t: t, dir: dir, scripts: scriptNames(t, root), closed: make(chan struct{}), about: map[string][]item.ID{},
		open: map[net.Conn]bool{}, lives: map[*stack.Service]*sync.Mutex{}}
	t.Cleanup(func() { // after the services have ended
		close(d.closed)
		d.mu.Lock()
		for c := range d.open {
			c.Close()
		}
		d.mu.Unlock()
		d.wg.Wait()
		os.RemoveAll(dir)
	})
	return d
}

// attach makes the director lead the services from their next start on.
func (d *director) attach(w *world, redisURL, mysqlDSN string) {
	d.t.Helper()
	u, err := url.Parse(redisURL)
	w.must("parse the URL of Redis", err)
	cfg, err := mysql.ParseDSN(mysqlDSN)
	w.must("parse the DSN", err)
	redisAddr, mysqlAddr := u.Host, cfg.Addr
	for _, v := range w.Services() {
		if v == w.API {
			continue
		}
		d.lives[v] = &sync.Mutex{}
		u.Host = d.wire(v, redisAddr, (&redisNames{d.scripts, strings.TrimSuffix(w.Keys.Views(), "views")}).parse)
		cfg.Addr = d.wire(v, mysqlAddr, statements)
		v.Settings["TIERFLOW_REDIS_URL"], v.Settings["TIERFLOW_MYSQL_DSN"] = u.String(), cfg.FormatDSN()
		socket := filepath.Join(d.dir, v.Name)
		v.Settings["TIERFLOW_TEST_STEPS"] = socket
		l, err := net.Listen("unix", socket)
		w.must("listen for steps", err)
		d.serve(l, func(conn net.Conn) { d.files(v, conn) })
	}
}

func (d *director) serve(l net.Listener, handle func(net.Conn)) {
	d.wg.Go(func() { <-d.closed; l.Close() })
	d.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.open[conn] = true
			d.mu.Unlock()
			d.wg.Go(func() {
				handle(conn)
				conn.Close()
				d.mu.Lock()
				delete(d.open, conn)
				d.mu.Unlock()
			})
		}
	})
}

// role returns relocator or committer.
func role(v *stack.Service) string { kind, _, _ := strings.Cut(v.Name, "-"); return kind }

// files answers a process that asks before every operation on files.
func (d *director) files(v *stack.Service, conn net.Conn) {
	pid := v.PID()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		goroutine, rest, _ := strings.Cut(line, " ")
		step, path, _ := strings.Cut(rest, " ")
		answer := "g"
		switch d.reached(v, pid, fmt.Sprint(pid, " ", goroutine), "fsys "+step, []byte(path)) {
		case skip:
			answer = "s"
		case gone:
			return
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

// reached calls lead with the step for each item that text names. Where text names none, it takes the items that the same
// goroutine or transaction named last. by is "" where the text always names its items itself.
func (d *director) reached(v *stack.Service, pid int, by, step string, text []byte) verdict {
	ids := idsIn(text)
	if by != "" {
		d.mu.Lock()
		if len(ids) > 0 {
			d.about[by] = ids
		} else {
			ids = d.about[by]
		}
		d.mu.Unlock()
	}
	if len(ids) == 0 {
		ids = []item.ID{0}
	}
	result := goOn
	for _, id := range ids {
		if r := d.lead(at{v, pid, id, role(v) + ": " + step}); r > result {
			result = r
		}
	}
	return result
}

// firstID is where the ids of items begin, so that they differ from all other numbers.
const firstID = 7_000_001

var idPattern = regexp.MustCompile(`(?:^|[^0-9])(7[0-9]{6})(?:$|[^0-9])`)

func idsIn(text []byte) (ids []item.ID) {
	for _, m := range idPattern.FindAllSubmatch(text, -1) {
		n, _ := strconv.ParseInt(string(m[1]), 10, 64)
		id := item.ID(n)
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// life returns the mutex to hold while a service's process is ended, stopped or started again.
func (d *director) life(v *stack.Service) *sync.Mutex { return d.lives[v] }

// kill ends the process that has reached a step, with SIGKILL, and starts the service again. It returns false where the
// service runs as another process by now. In between it calls the function again.
func (d *director) kill(a at, again func(*stack.Service)) bool {
	d.life(a.service).Lock()
	defer d.life(a.service).Unlock()
	if a.service.PID() != a.pid {
		return false
	}
	if err := a.service.Kill(); err != nil {
		d.t.Errorf("kill %s: %v", a.service.Name, err)
	}
	again(a.service)
	if err := a.service.Launch(); err != nil {
		d.t.Errorf("start %s: %v", a.service.Name, err)
	}
	return true
}

// pause stops the process that has reached a step, with SIGSTOP, and returns when no thread of it runs any more.
func (d *director) pause(a at) bool {
	d.life(a.service).Lock()
	defer d.life(a.service).Unlock()
	if a.service.PID() != a.pid || a.service.Pause() != nil {
		return false
	}
	for !stopped(a.pid) {
		if a.service.PID() != a.pid {
			return false
		}
		time.Sleep(100 * time.Microsecond) // no event tells when all threads have stopped
	}
	return true
}

func stopped(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		if len(rest) == 0 || rest[0] != 'T' {
			return false
		}
	}
	return true
}

// resume lets the process go on.
func (d *director) resume(a at) {
	d.life(a.service).Lock()
	defer d.life(a.service).Unlock()
	if a.service.PID() != a.pid {
		return
	}
	if err := a.service.Resume(); err != nil {
		d.t.Errorf("resume %s: %v", a.service.Name, err)
	}
}

// transactions have a name each.
var transactions atomic.Int64

// request is one of the requests that a client has written at once.
type request struct {
	step string
	text []byte
}

// wire is a connection to a server that belongs to one service. parse finds the requests that begin in a chunk, which is
// what one read returns. Clients write all requests that they have at once, and then wait for the answers.
func (d *director) wire(v *stack.Service, target string, parse func(chunk []byte) []request) (addr string) {
	d.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	d.serve(l, func(client net.Conn) {
		pid := v.PID()
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		var mu sync.Mutex
		by := ""            // a request without an item is about none, except within a transaction
		var asked []request // requests that have no answer yet
		all := func(requests []request, by, suffix string, also []byte) bool {
			for _, r := range requests {
				text := r.text
				if strings.HasPrefix(r.step, "redis xreadgroup") || strings.HasPrefix(r.step, "redis xautoclaim") {
					text = also // entries
				}
				if d.reached(v, pid, by, r.step+suffix, text) == gone {
					return false
				}
			}
			return true
		}
		d.wg.Go(func() {
			defer client.Close()
			defer server.Close()
			pump(client, server, func(chunk []byte) []byte {
				mu.Lock()
				answered, of := asked, by
				asked = nil
				if len(answered) == 1 && (answered[0].step == "mysql COMMIT" || answered[0].step == "mysql ROLLBACK") {
					by = ""
				}
				mu.Unlock()
				if !all(answered, of, ", answered", chunk) {
					return nil
				}
				return chunk
			})
		})
		pump(server, client, func(chunk []byte) []byte {
			requests := parse(chunk)
			mu.Lock()
			if len(requests) == 1 && requests[0].step == "mysql START TRANSACTION" {
				by = fmt.Sprint("transaction ", transactions.Add(1))
			}
			of := by
			mu.Unlock()
			if !all(requests, of, "", nil) {
				return nil
			}
			mu.Lock()
			asked = append(asked, requests...)
			mu.Unlock()
			d.mu.Lock()
			rewrite := d.rewrite
			d.mu.Unlock()
			if rewrite != nil && len(requests) > 0 {
				return rewrite(role(v)+": "+requests[0].step, chunk)
			}
			return chunk
		})
	})
	return l.Addr().String()
}

// pump copies until either side ends or pass returns nothing.
func pump(to, from net.Conn, pass func([]byte) []byte) {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			chunk := pass(buf[:n])
			if chunk == nil {
				return
			}
			if _, err := to.Write(chunk); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// redisNames names commands by their first words: a script's name, or the command and the key without its numbers.
type redisNames struct {
	scripts map[string]string
	prefix  string // prefix of the keys
}

// parse splits a chunk into requests, as far as it is whole.
func (r *redisNames) parse(chunk []byte) (requests []request) {
	in := bufio.NewReader(bytes.NewReader(chunk))
	number := func(kind byte) int {
		line, err := in.ReadString('\n')
		if err != nil || line[0] != kind {
			return -1
		}
		n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
		if err != nil {
			return -1
		}
		return n
	}
	for {
		var words []string
		n := number('*')
		for range n {
			word := make([]byte, max(number('$'), 0)+len("\r\n"))
			if _, err := io.ReadFull(in, word); err != nil {
				break
			}
			words = append(words, string(word[:len(word)-2]))
		}
		if len(words) == 0 {
			return requests
		}
		text := strings.Join(words, " ")
		requests = append(requests, request{"redis " + r.name(words), []byte(text)})
	}
}

func (r *redisNames) name(words []string) string {
	command := strings.ToLower(words[0])
	if command == "evalsha" && len(words) > 1 {
		if name, ok := r.scripts[words[1]]; ok {
			return name
		}
	}
	if command == "eval" { // once for each script
		return command
	}
	for _, word := range words[1:] {
		if key, ok := strings.CutPrefix(word, r.prefix); ok {
			return command + " " + strings.TrimRight(key, "0123456789")
		}
	}
	return command
}

// statements names a statement by its first words.
func statements(chunk []byte) []request {
	const header, query = 4, 3
	if len(chunk) <= header || chunk[3] != 0 || chunk[header] != query { // not the first packet of a query
		return nil
	}
	words := strings.Fields(string(chunk[header+1 : min(len(chunk), header+200)]))
	return []request{{"mysql " + strings.Join(words[:min(len(words), 4)], " "), bytes.Clone(chunk)}}
}

// called returns the name of the function that is called, without its package.
func called(fun ast.Expr) string {
	switch f := fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

// scriptNames reads the names of all Lua scripts from the source. The keys are the SHA-1 sums under which Redis knows them.
func scriptNames(t *testing.T, root string) map[string]string {
	t.Helper()
	names := map[string]string{}
	for _, dir := range []string{"shared/state", "shared/stream"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		texts := map[string]string{} // text of constants
		scripts := map[string]ast.Expr{}
		for _, file := range files {
			f, err := parser.ParseFile(gotoken.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
					return true
				}
				if call, ok := spec.Values[0].(*ast.CallExpr); ok && len(call.Args) == 1 {
					switch called(call.Fun) {
					case "NewScript":
						scripts[spec.Names[0].Name] = call.Args[0]
					case "Script": // stream.Script, which puts a line of flags in front
						scripts[spec.Names[0].Name] = &ast.BinaryExpr{Op: gotoken.ADD, Y: call.Args[0],
							X: &ast.BasicLit{Kind: gotoken.STRING, Value: `"#!lua flags=allow-oom\n"`}}
					}
				} else if text, ok := constant(spec.Values[0], texts); ok {
					texts[spec.Names[0].Name] = text
				}
				return true
			})
		}
		for name, e := range scripts {
			if text, ok := constant(e, texts); ok {
				sum := sha1.Sum([]byte(text))
				names[hex.EncodeToString(sum[:])] = name
			}
		}
	}
	if len(names) < 10 {
		t.Fatalf("found %d scripts", len(names))
	}
	return names
}

// constant returns the value of a string expression.
func constant(e ast.Expr, known map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.Ident:
		text, ok := known[e.Name]
		return text, ok
	case *ast.BinaryExpr:
		a, ok := constant(e.X, known)
		b, ok2 := constant(e.Y, known)
		return a + b, ok && ok2
	}
	return "", false
}

// directed starts a stack that the director leads.
func directed(t *testing.T, o options, lead func(at) verdict) (*world, *director) {
	t.Helper()
	d := newDirector(t)
	d.lead = lead
	o.directed, o.stopped = true, true
	o.redisURL, o.mysqlDSN = testserver.Redis(t), testserver.MySQL(t)
	o.prefix = testserver.Prefix(t)
	w := start(t, o)
	d.attach(w, o.redisURL, o.mysqlDSN)
	return w, d
}
