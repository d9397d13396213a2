package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func newRedis(t *testing.T) *redis.Client {
	t.Helper()
	url, stop, err := startRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	return client
}

// add appends n entries and returns their ids.
func add(t *testing.T, r *redis.Client, stream string, n int) []string {
	t.Helper()
	var ids []string
	for i := range n {
		id, err := r.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []any{"cid", i}}).Result()
		must(t, err)
		ids = append(ids, id)
	}
	return ids
}

func read(t *testing.T, r *redis.Client, stream, group, consumer string, n int64) []redis.XMessage {
	t.Helper()
	got, err := r.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: group, Consumer: consumer, Streams: []string{stream, ">"}, Count: n, Block: time.Second,
	}).Result()
	must(t, err)
	return got[0].Messages
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// until waits for something that happens in another goroutine.
func until(t *testing.T, within time.Duration, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func TestALockExpiresWithinASecondOfItsTime(t *testing.T) {
	r, ctx := newRedis(t), t.Context()
	must(t, r.SetArgs(ctx, "lock:7", "token", redis.SetArgs{Mode: "NX", TTL: 300 * time.Millisecond}).Err())
	equal(t, "a second taker", r.SetArgs(ctx, "lock:7", "other", redis.SetArgs{Mode: "NX", TTL: time.Second}).Err(), error(redis.Nil))
	must(t, r.PExpire(ctx, "lock:7", 500*time.Millisecond).Err())
	start := time.Now()
	until(t, 1500*time.Millisecond, "the lock is gone", func() bool { return r.Get(ctx, "lock:7").Err() == redis.Nil })
	if took := time.Since(start); took < 350*time.Millisecond {
		t.Errorf("the lock was gone after %v", took)
	}
}

func TestGroupsReadClaimAndTrim(t *testing.T) {
	r, ctx := newRedis(t), t.Context()
	must(t, r.XGroupCreateMkStream(ctx, "views", "relocator", "0").Err())
	if err := r.XGroupCreate(ctx, "views", "relocator", "0").Err(); err == nil || !strings.HasPrefix(err.Error(), "BUSYGROUP") {
		t.Errorf("the group a second time: %v", err)
	}
	ids := add(t, r, "views", 5)
	equal(t, "entries read", len(read(t, r, "views", "relocator", "a", 3)), 3)

	groups, err := r.XInfoGroups(ctx, "views").Result()
	must(t, err)
	equal(t, "groups", len(groups), 1)
	equal(t, "name", groups[0].Name, "relocator")
	equal(t, "pending", groups[0].Pending, 3)
	equal(t, "lag", groups[0].Lag, 2)
	equal(t, "last delivered", groups[0].LastDeliveredID, ids[2])
	consumers, err := r.XInfoConsumers(ctx, "views", "relocator").Result()
	must(t, err)
	equal(t, "consumers", len(consumers), 1)
	equal(t, "its pending", consumers[0].Pending, 3)
	stream, err := r.XInfoStream(ctx, "views").Result()
	must(t, err)
	equal(t, "length", stream.Length, 5)
	equal(t, "last id", stream.LastGeneratedID, ids[4])

	summary, err := r.XPending(ctx, "views", "relocator").Result()
	must(t, err)
	equal(t, "lowest pending", summary.Lower, ids[0])
	equal(t, "pending of a", summary.Consumers["a"], 3)

	claimed, next, err := r.XAutoClaim(ctx, &redis.XAutoClaimArgs{
		Stream: "views", Group: "relocator", Consumer: "b", MinIdle: 0, Start: "0", Count: 2,
	}).Result()
	must(t, err)
	equal(t, "claimed", len(claimed), 2)
	equal(t, "next", next, ids[2])
	equal(t, "acknowledged", r.XAck(ctx, "views", "relocator", ids[0], ids[1]).Val(), 2)

	equal(t, "trimmed", r.XTrimMinID(ctx, "views", ids[2]).Val(), 2)
	equal(t, "first", r.XRangeN(ctx, "views", "-", "+", 1).Val()[0].ID, ids[2])
	equal(t, "last", r.XRevRangeN(ctx, "views", "+", "-", 1).Val()[0].ID, ids[4])
	read(t, r, "views", "relocator", "a", 10)
	equal(t, "lag in the end", r.XInfoGroups(ctx, "views").Val()[0].Lag, 0)
}

func TestABlockedReadWakesUpWithTheNextEntry(t *testing.T) {
	r, ctx := newRedis(t), t.Context()
	must(t, r.XGroupCreateMkStream(ctx, "views", "relocator", "0").Err())
	got := make(chan []redis.XStream)
	go func() {
		streams, _ := r.XReadGroup(context.Background(), &redis.XReadGroupArgs{
			Group: "relocator", Consumer: "a", Streams: []string{"views", ">"}, Block: 2 * time.Second,
		}).Result()
		got <- streams
	}()
	ids := add(t, r, "views", 1)
	if streams := <-got; len(streams) != 1 || streams[0].Messages[0].ID != ids[0] {
		t.Errorf("got %v", streams)
	}
	err := r.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: "relocator", Consumer: "a", Streams: []string{"views", ">"}, Block: 10 * time.Millisecond,
	}).Err()
	equal(t, "nothing to read", err, error(redis.Nil))
}

func TestAClaimHeedsIdleTimeAndJustidKeepsTheCount(t *testing.T) {
	r, ctx := newRedis(t), t.Context()
	must(t, r.XGroupCreateMkStream(ctx, "views", "relocator", "0").Err())
	id := add(t, r, "views", 1)[0]
	read(t, r, "views", "relocator", "a", 1)
	pending := func() redis.XPendingExt {
		return r.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: "views", Group: "relocator", Start: id, End: id, Count: 1}).Val()[0]
	}
	claim := redis.XClaimArgs{Stream: "views", Group: "relocator", Consumer: "b", MinIdle: time.Hour, Messages: []string{id}}

	taken, err := r.XClaim(ctx, &claim).Result()
	must(t, err)
	equal(t, "claimed too early", len(taken), 0)
	equal(t, "owner", pending().Consumer, "a")

	claim.MinIdle = 0
	just, err := r.XClaimJustID(ctx, &claim).Result()
	must(t, err)
	equal(t, "ids", strings.Join(just, " "), id)
	equal(t, "owner", pending().Consumer, "b")
	equal(t, "count after JUSTID", pending().RetryCount, 1)
	taken, err = r.XClaim(ctx, &claim).Result()
	must(t, err)
	equal(t, "the entry", fmt.Sprint(taken[0].Values), "map[cid:0]")
	equal(t, "count after a claim", pending().RetryCount, 2)

	// A heartbeat: a script renews the entry if this consumer still has it.
	heartbeat := redis.NewScript(`
local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #p == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4], 'JUSTID')
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return p[1][4]`)
	beat := func(consumer string) any {
		v, err := heartbeat.Run(ctx, r, []string{"views"}, "relocator", consumer, id, 7).Result()
		must(t, err)
		return v
	}
	equal(t, "the count before the owner's heartbeat", beat("b"), any(int64(2)))
	equal(t, "another's heartbeat", beat("a"), any(int64(0)))
	equal(t, "count after RETRYCOUNT", pending().RetryCount, 7)
}

func TestScriptsHaveCjsonPatternsAndTheTime(t *testing.T) {
	r, ctx := newRedis(t), t.Context()
	must(t, r.Set(ctx, "content:7", `{"cid": "7", "entry_id": "12-3", "worker_id": null}`, time.Hour).Err())
	script := redis.NewScript(`
local s = redis.call('GET', KEYS[1])
local ms, seq = string.match(s, '"entry_id": "(%d+)%-(%d+)"')
local j = cjson.decode(s)
if j.worker_id ~= cjson.null then return redis.error_reply('not null') end
local now = redis.call('TIME')
if not tonumber(now[1]) or redis.call('GET', KEYS[2]) ~= false then return redis.error_reply('no time') end
redis.call('SET', KEYS[2], cjson.encode({cid = j.cid}), 'PX', 60000, 'NX')
local id = redis.call('XADD', KEYS[3], '*', unpack(ARGV))
return {ms, seq, j.cid, redis.call('GET', KEYS[2]), string.sub(s, 1, 8) .. #id, string.format('%s', now[1])}`)
	got, err := script.Run(ctx, r, []string{"content:7", "lock:7", "views"}, "cid", "7", "count", "1964").StringSlice()
	must(t, err)
	equal(t, "the parts", strings.Join(got[:4], " "), `12 3 7 {"cid":"7"}`)
	equal(t, "the digits of the time", len(got[5]), 10)
	equal(t, "the entry", r.XLen(ctx, "views").Val(), 1)
	must(t, script.EvalSha(ctx, r, []string{"content:7", "lock:8", "views"}, "cid", "7").Err())

	must(t, r.HSet(ctx, "progress:7", "bytes", 5, "total", 10).Err())
	keys, _, err := r.Scan(ctx, 0, "*:7", 100).Result()
	must(t, err)
	equal(t, "keys", len(keys), 3)
	equal(t, "deleted", r.Del(ctx, keys...).Val(), 3)
}

// redis-cli 7.0 asks for COMMAND DOCS when it is not given its command as arguments.
func TestCommandIsRefusedBecauseItsReplyWouldCrashRedisCli(t *testing.T) {
	r := newRedis(t)
	if err := r.Do(t.Context(), "COMMAND", "DOCS").Err(); err == nil || !strings.HasPrefix(err.Error(), "ERR unknown command") {
		t.Errorf("got %v", err)
	}
}

func TestAScriptWithALineOfFlagsRuns(t *testing.T) {
	r := newRedis(t)
	script := redis.NewScript("#!lua flags=allow-oom\nreturn redis.call('INCR', KEYS[1])")
	for want := range 3 {
		got, err := script.Run(t.Context(), r, []string{"n"}).Int()
		must(t, err)
		equal(t, "the answer", got, want+1)
	}
	must(t, r.Del(t.Context(), "n").Err())
	must(t, script.Load(t.Context(), r).Err())
	got, err := script.EvalSha(t.Context(), r, []string{"n"}).Int()
	must(t, err)
	equal(t, "the answer after SCRIPT LOAD", got, 1)
}
