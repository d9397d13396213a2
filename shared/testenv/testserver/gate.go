package testserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tierflow/tierflow/shared/testenv/localserver"
)

// openTimeout is far longer than a child that is being started can hold a gate's port.
const openTimeout = 10 * time.Second

// Gate is a TCP proxy in front of a server. With it a test can cut one client off from the server and connect it again,
// while others go on using the server.
type Gate struct {
	t        testing.TB
	addr     string
	wg       sync.WaitGroup
	mu       sync.Mutex
	target   string
	listener net.Listener // nil while closed
	links    map[*link]bool
	cut      *cut                      // the next reply to cut; nil for none
	judge    func(request []byte) Fate // nil lets everything pass
}

// Fate is what a gate does with a request.
type Fate int

// Pass lets the request and its reply through. LoseRequest cuts the connection before the server gets the request.
// LoseReply lets the server execute the request, and cuts the connection instead of sending the reply. The client cannot
// tell these two apart.
const (
	Pass Fate = iota
	LoseRequest
	LoseReply
)

// cut waits for a request that contains the bytes.
type cut struct {
	request []byte
	done    chan struct{}
}

// link is a client's connection to the gate, with the gate's connection to the server for it.
type link struct {
	client, server net.Conn
	mu             sync.Mutex
	cut            *cut // not nil: the next reply is dropped and the link is cut
}

func (l *link) close() {
	l.client.Close()
	l.server.Close()
}

// NewGate makes an open gate in front of target, a "host:port". It is closed at the end of the test.
func NewGate(t testing.TB, target string) *Gate {
	t.Helper()
	port, err := localserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port), target: target, links: map[*link]bool{}}
	g.Open()
	t.Cleanup(func() {
		g.Close()
		g.wg.Wait()
	})
	return g
}

// RedisGate makes a gate in front of a Redis and returns the URL that goes through it.
func RedisGate(t testing.TB, serverURL string) (*Gate, string) {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	port := u.Port()
	if port == "" {
		port = "6379"
	}
	g := NewGate(t, net.JoinHostPort(u.Hostname(), port))
	u.Host = g.addr
	return g, u.String()
}

// ClusterGate puts a gate in front of a node of a cluster. The other nodes redirect clients to the gate as well, until the
// end of the test.
func ClusterGate(t testing.TB, c *localserver.RedisCluster, node *localserver.Redis) *Gate {
	t.Helper()
	g := NewGate(t, node.Addr())
	_, text, _ := net.SplitHostPort(g.addr)
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	announce := func(port int) {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := c.Announce(ctx, node, port); err != nil {
			t.Errorf("announce port %d: %v", port, err)
		}
	}
	announce(port)
	t.Cleanup(func() { announce(0) })
	return g
}

// MySQLGate makes a gate in front of a MySQL server and returns the DSN that goes through it.
func MySQLGate(t testing.TB, dsn string) (*Gate, string) {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Net != "tcp" {
		t.Fatalf("a gate needs a DSN with tcp, this one has %s", cfg.Net)
	}
	g := NewGate(t, cfg.Addr)
	cfg.Addr = g.addr
	return g, cfg.FormatDSN()
}

// Addr returns the gate's own address. It stays the same while the gate is closed.
func (g *Gate) Addr() string { return g.addr }

// Open lets clients through.
func (g *Gate) Open() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		return
	}
	// A child that was being started when the gate was closed has a copy of the listener until it runs its own program.
	var l net.Listener
	Eventually(g.t, "open the gate", openTimeout, func() (err error) {
		l, err = net.Listen("tcp", g.addr)
		return err
	})
	g.listener = l
	g.wg.Go(func() { g.accept(l) })
}

// Close cuts every connection and refuses new ones.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener == nil {
		return
	}
	g.listener.Close()
	g.listener = nil
	for l := range g.links {
		l.close()
	}
}

// CutReply lets the next request that contains these bytes reach the server, waits for the server's reply,
// and cuts the connection instead of sending the reply. The server has done the request, and the client cannot know. The
// channel is closed when that has happened. The gate searches the bytes of a single read, so choose something short near
// the beginning of the request: a command, a key. Only one CutReply can be active at a time.
func (g *Gate) CutReply(request string) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = &cut{[]byte(request), make(chan struct{})}
	return g.cut.done
}

// Judge makes f decide the fate of every request from now on, until the next call of Judge; nil lets them pass. f gets the
// bytes of one read: a command, or a pipeline of them. Calls of f do not overlap. f must not use the gate.
func (g *Gate) Judge(f func(request []byte) Fate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judge = f
}

// Redirect cuts every connection and connects new ones to another server, as after a failover.
func (g *Gate) Redirect(target string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target = target
	for l := range g.links {
		l.close()
	}
}

func (g *Gate) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		g.wg.Go(func() { g.serve(listener, client) })
	}
}

func (g *Gate) serve(listener net.Listener, client net.Conn) {
	g.mu.Lock()
	target := g.target
	g.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		client.Close()
		return
	}
	l := &link{client: client, server: server}
	g.mu.Lock()
	open := g.listener == listener && g.target == target // else it was closed or redirected during the dial
	if open {
		g.links[l] = true
	}
	g.mu.Unlock()
	if open {
		g.wg.Go(func() { g.replies(l) })
		g.requests(l)
	}
	l.close()
	g.mu.Lock()
	delete(g.links, l)
	g.mu.Unlock()
}

func (g *Gate) requests(l *link) {
	pump(l.server, l.client, func(chunk []byte) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		fate := Pass
		if g.judge != nil {
			fate = g.judge(chunk)
		}
		next := g.cut
		switch {
		case next != nil && bytes.Contains(chunk, next.request):
			g.cut = nil
		case fate == LoseReply:
			next = &cut{done: make(chan struct{})}
		default:
			return fate == Pass
		}
		l.mu.Lock()
		l.cut = next
		l.mu.Unlock()
		return true
	})
}

func (g *Gate) replies(l *link) {
	pump(l.client, l.server, func([]byte) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.cut == nil {
			return true
		}
		l.close()
		close(l.cut.done)
		return false
	})
	l.close()
}

// pump copies until either side ends or pass refuses a chunk. It drops a refused chunk.
func pump(to io.Writer, from io.Reader, pass func([]byte) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !pass(buf[:n]) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
