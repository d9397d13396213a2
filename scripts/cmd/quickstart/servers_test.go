package main

import (
	"strings"
	"testing"
)

func TestTheCommandLinesReachTheServersAndShowNoChosenPassword(t *testing.T) {
	for address, want := range map[string]string{
		"redis://127.0.0.1:20001/0":              "redis-cli -p 20001",
		"redis://redis.example.org:6379/2":       "redis-cli -u redis://redis.example.org:6379/2",
		"rediss://me:hidden@redis.example.org/0": "redis-cli -u rediss://me@redis.example.org/0 --askpass",
	} {
		if got := redisCommand(address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
	for dsn, want := range map[string]string{
		"root@tcp(127.0.0.1:20001)/tierflow":              " -h 127.0.0.1 -P 20001 -u root tierflow",
		"tierflow:tierflow@tcp(127.0.0.1:20001)/tierflow": " -h 127.0.0.1 -P 20001 -u tierflow -ptierflow tierflow",
		"me:hidden@tcp(db.example.org:3306)/t":            " -h db.example.org -P 3306 -u me -p t",
		"me@unix(/run/mysqld.sock)/t":                     " -S /run/mysqld.sock -u me t",
	} {
		if _, got, _ := strings.Cut(mysqlCommand(dsn), " "); " "+got != want {
			t.Errorf("%s: %q, want %q", dsn, got, want)
		}
	}
}

func TestAServerThatIsTooOldIsRecognized(t *testing.T) {
	for version, want := range map[string]bool{"7.0.15": true, "8.0": true, "6.2.9": false, "10.11.4": true, "": false, "seven": false} {
		if got := atLeast(version, 7, 0); got != want {
			t.Errorf("%s is at least 7.0: %v", version, got)
		}
	}
	if atLeast("10.6.12", 10, 11) {
		t.Error("10.6 is taken for later than 10.11")
	}
}
