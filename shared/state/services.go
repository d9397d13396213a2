package state

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tierflow/tierflow/shared/stream"
)

const (
	// ReportEvery is how often a program reports itself.
	ReportEvery = 5 * time.Second
	// aliveFor is how long a report counts as a sign of life.
	aliveFor = 3 * ReportEvery
	// knownFor is how long a program that has ended without saying so is still named.
	knownFor = time.Hour
)

// Names of Service.Rates.
const (
	RateViews = "views" // view events that an api has accepted
	RateMoves = "moves" // copies that a relocator has made durable and emitted
	RateBytes = "bytes" // of these copies
)

// Service is a program as it reports itself.
type Service struct {
	Program   string            `json:"program"`  // api, relocator, committer
	ID        string            `json:"id"`       // unique among the programs of this name
	Instance  string            `json:"instance"` // random: two processes with one id are told apart by it
	Version   string            `json:"version"`
	StartedAt time.Time         `json:"started_at"`
	Missing   map[string]string `json:"missing,omitempty"`  // what /readyz says is missing, by check
	Warnings  map[string]string `json:"warnings,omitempty"` // what it warns of

	Tiers   []TierReport       `json:"tiers,omitempty"`    // of a relocator: the tiers that it reaches
	Rates   map[string]float64 `json:"rates,omitempty"`    // by Rate…: how many a second, over the last minute
	GraceMS int64              `json:"grace_ms,omitempty"` // of a relocator: how long an old copy stays

	Age   time.Duration `json:"-"` // since the last report, by the clock of Redis
	Alive bool          `json:"-"`
}

// reportScript records a report. The time is the server's.
//
//	KEYS  services
//	ARGV  program and id, the report as JSON, how long the hash is kept in ms
//	->    the JSON of the report that it has replaced, '' where there was none
var reportScript = stream.Script(`
local t = redis.call('TIME')
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', t[1] * 1000 + math.floor(t[2] / 1000)) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return string.match(before, '^%d+ (.*)$') or ''`)

// servicesScript lists the reports and deletes those that are too old, or of the future: the server's clock went back.
//
//	KEYS  services
//	ARGV  how long a report is kept in ms
//	->    of each its age in ms and its JSON
var servicesScript = stream.Script(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at, text = string.match(all[i+1], '^(%d+) (.*)$')
  if not at or math.abs(now - at) > tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    found[#found+1] = string.format('%.0f', now - at)
    found[#found+1] = text
  end
end
return found`)

func (v Service) field() string { return v.Program + " " + v.ID }

// Report records that a program lives, and what it says of itself. another: the report that it has replaced was of another
// instance, which may have ended since.
func (s *Store) Report(ctx context.Context, v Service) (another bool, err error) {
	v.Tiers = slices.Clone(v.Tiers)
	for i := range v.Tiers {
		v.Tiers[i].Reason = words(v.Tiers[i].Reason)
	}
	text, err := json.Marshal(v)
	var before string
	if err == nil {
		before, err = reportScript.Run(ctx, s.rdb, []string{s.keys.Services()}, v.field(), text, knownFor.Milliseconds()).Text()
	}
	if err != nil {
		return false, unavailable("report to", s.keys.Services(), err)
	}
	var other Service
	return before != "" && json.Unmarshal([]byte(before), &other) == nil && other.Instance != v.Instance, nil
}

// Ended removes a program that ends, so that it is not missed.
func (s *Store) Ended(ctx context.Context, v Service) error {
	if err := s.rdb.HDel(ctx, s.keys.Services(), v.field()).Err(); err != nil {
		return unavailable("write", s.keys.Services(), err)
	}
	return nil
}

// Services returns the programs that have reported themselves within the last hour and have not said that they end, by program
// and id. Where a worker sends heartbeats and no reports, it is of an older version: it is alive, and nothing else is known of
// it. within is how long a heartbeat counts.
func (s *Store) Services(ctx context.Context, within time.Duration) ([]Service, error) {
	found, err := servicesScript.Run(ctx, s.rdb, []string{s.keys.Services()}, knownFor.Milliseconds()).StringSlice()
	if err != nil {
		return nil, unavailable("read", s.keys.Services(), err)
	}
	var all []Service
	known := map[string]bool{}
	for i := 0; i+1 < len(found); i += 2 {
		ms, err := strconv.ParseInt(found[i], 10, 64)
		var v Service
		if err == nil {
			err = json.Unmarshal([]byte(found[i+1]), &v)
		}
		if err != nil {
			return nil, unavailable("read", s.keys.Services(), fmt.Errorf("a report cannot be read: %w", err))
		}
		v.Age = time.Duration(ms) * time.Millisecond
		v.Alive = v.Age.Abs() <= aliveFor
		v.Age = max(v.Age, 0)
		known[v.field()] = true
		all = append(all, v)
	}
	for _, group := range []string{GroupRelocator, GroupCommitter} {
		ids, err := s.living(ctx, group, within)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if v := (Service{Program: group, ID: id, Alive: true}); !known[v.field()] {
				all = append(all, v)
			}
		}
	}
	slices.SortFunc(all, func(a, b Service) int {
		return cmp.Or(strings.Compare(a.Program, b.Program), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}
