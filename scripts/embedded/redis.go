package main

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// tick is the step of Redis' clock: a key expires at most this late.
const tick = 100 * time.Millisecond

// startRedis starts an empty Redis on addr. It returns its URL and a function that stops it.
func startRedis(addr string) (url string, stop func(), err error) {
	redis := miniredis.NewMiniRedis()
	if err := redis.StartAddr(addr); err != nil {
		return "", nil, err
	}
	c := cures{srv: redis.Server(), scripts: &scripts{plain: map[string]string{}}}
	redis.Server().SetPreHook(c.hook)

	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		expire(redis, end)
	}()
	stop = func() {
		close(end)
		<-ended
		redis.Close()
	}
	return "redis://" + redis.Addr() + "/0", stop, nil
}

// expire moves the clock by which keys expire; miniredis does not move it by itself. (Its ClockTTL does, but it looks at
// every key at every command.)
func expire(redis *miniredis.Miniredis, end <-chan struct{}) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case now := <-ticker.C:
			redis.FastForward(now.Sub(last))
			last = now
		case <-end:
			return
		}
	}
}

// cures answers those commands that miniredis answers differently from Redis.
type cures struct {
	srv     *server.Server
	scripts *scripts
}

// inside is the client name of the commands that cures itself sends. They go to miniredis unchanged.
const inside = "tierflow-embedded-cure"

// hook answers the command and returns true, or leaves it to miniredis.
func (r cures) hook(c *server.Peer, cmd string, args ...string) bool {
	switch {
	case c.ClientName == inside:
		return false
	case cmd == "EVAL" && len(args) > 0:
		args[0] = r.scripts.withoutFlags(args[0])
	case cmd == "EVALSHA" && len(args) > 0:
		args[0] = r.scripts.hash(args[0])
	case cmd == "SCRIPT" && len(args) == 2 && strings.EqualFold(args[0], "LOAD"):
		args[1] = r.scripts.withoutFlags(args[1])
	case cmd == "COMMAND":
		// The reply of miniredis crashes redis-cli 7.0. After an error redis-cli works without the reply.
		c.WriteError("ERR unknown command 'COMMAND'")
		return true
	case cmd == "XINFO" && len(args) == 2 && strings.EqualFold(args[0], "GROUPS"):
		r.groups(c, args[1])
		return true
	case cmd == "XCLAIM" && len(args) >= 5:
		r.claim(c, args)
		return true
	}
	return false
}

// groups is XINFO GROUPS whose lag is the number of undelivered entries. miniredis returns the length of the whole
// stream.
func (r cures) groups(c *server.Peer, key string) {
	reply, err := r.ask(c, "XINFO", "GROUPS", key)
	groups, ok := reply.([]any)
	if err != nil || !ok {
		write(c, reply, err)
		return
	}
	c.WriteLen(len(groups))
	for _, group := range groups {
		fields := group.([]any)
		c.WriteMapLen(len(fields) / 2)
		var last string
		for i := 0; i < len(fields); i += 2 {
			name, value := fields[i].(string), fields[i+1]
			switch name {
			case "last-delivered-id":
				last = value.(string)
			case "lag":
				waiting, _ := r.ask(c, "XRANGE", key, "("+last, "+")
				entries, _ := waiting.([]any)
				value = len(entries)
			}
			c.WriteBulk(name)
			write(c, value, nil)
		}
	}
}

// claim is XCLAIM that obeys its min-idle-time and, with JUSTID, does not change the delivery count. miniredis does
// neither. Another connection may claim an entry between the XPENDING and the XCLAIM here, except in a script, during
// which Redis runs nothing else.
func (r cures) claim(c *server.Peer, args []string) {
	key, group, options := args[0], args[1], len(args)
	for i, arg := range args[4:] {
		if strings.Trim(arg, "0123456789-") != "" {
			options = 4 + i
			break
		}
	}
	given := strings.ToUpper(strings.Join(args[options:], " "))
	keepCount := strings.Contains(given, "JUSTID") && !strings.Contains(given, "RETRYCOUNT")

	claimed := []any{}
	for _, id := range args[4:options] {
		command := append([]string{"XCLAIM", key, group, args[2], args[3], id}, args[options:]...)
		reply, err := r.ask(c, "XPENDING", key, group, id, id, "1")
		if err != nil {
			write(c, nil, err)
			return
		}
		if found, _ := reply.([]any); len(found) == 1 {
			entry := found[0].([]any) // id, consumer, idle milliseconds, delivery count
			var minIdle int
			if _, err := fmt.Sscan(args[3], &minIdle); err == nil && entry[2].(int) < minIdle {
				continue
			}
			if keepCount {
				command = append(command, "RETRYCOUNT", fmt.Sprint(entry[3]))
			}
		}
		reply, err = r.ask(c, command...)
		if err != nil {
			write(c, nil, err)
			return
		}
		ids, _ := reply.([]any)
		claimed = append(claimed, ids...)
	}
	write(c, claimed, nil)
}

// ask runs a command for the connection c, in its database and in its script, and returns the reply.
func (r cures) ask(c *server.Peer, command ...string) (any, error) {
	var reply bytes.Buffer
	w := bufio.NewWriter(&reply)
	peer := server.NewPeer(w)
	peer.Ctx, peer.ClientName = c.Ctx, inside
	r.srv.Dispatch(peer, command)
	w.Flush()
	return server.ParseReply(bufio.NewReader(&reply))
}

// write sends the reply that ask has returned.
func write(c *server.Peer, reply any, err error) {
	if err != nil {
		c.WriteError(err.Error())
		return
	}
	switch v := reply.(type) {
	case nil:
		c.WriteNull()
	case int:
		c.WriteInt(v)
	case string:
		c.WriteBulk(v)
	case server.Simple:
		c.WriteInline(string(v))
	case []any:
		c.WriteLen(len(v))
		for _, element := range v {
			write(c, element, nil)
		}
	}
}

// scripts lets miniredis run scripts that begin with a line of flags (#!lua flags=…), which its Lua cannot parse.
type scripts struct {
	mu    sync.Mutex
	plain map[string]string // from the hash of a script with flags to the hash of the same script without
}

// withoutFlags returns the script without its line of flags.
func (s *scripts) withoutFlags(script string) string {
	first, plain, found := strings.Cut(script, "\n")
	if !found || !strings.HasPrefix(first, "#!") {
		return script
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plain[hashOf(script)] = hashOf(plain)
	return plain
}

// hash returns the hash by which miniredis knows the script.
func (s *scripts) hash(hash string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if plain, ok := s.plain[strings.ToLower(hash)]; ok {
		return plain
	}
	return hash
}

func hashOf(script string) string {
	sum := sha1.Sum([]byte(script)) // as Redis names scripts
	return hex.EncodeToString(sum[:])
}
