package main

import "testing"

func TestTheCommandLinesReachTheServersAndShowNoChosenPassword(t *testing.T) {
	for url, want := range map[string]string{
		"redis://127.0.0.1:20001/0":         "redis-cli -p 20001",
		"redis://redis.example.org:6379/2":  "redis-cli -u redis://redis.example.org:6379/2",
		"redis://:hidden@127.0.0.1:20001/0": "redis-cli -u redis://:hidden@127.0.0.1:20001/0",
	} {
		if got := redisCommand(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
