package house_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	redisUser = regexp.MustCompile(`(?m)^user (\w+) on PASSWORD((?:.*\n)(?:  .*\n)*)`)
	keyName   = regexp.MustCompile(`(?:prefix \+ |stream\(|of\()"([a-z]+)`)
	luaCall   = regexp.MustCompile(`redis\.call\('(\w+)'(?:, '([A-Z]+)')?`)
	goCall    = regexp.MustCompile(`\b(?:rdb|Redis|pipe)\.([A-Z]\w+)\(ctx`)
)

// commands are the commands that go-redis' methods send, where the method has another name.
var commands = map[string]string{
	"XInfoGroups": "xinfo|groups", "XInfoStream": "xinfo|stream", "XInfoConsumers": "xinfo|consumers",
	"XGroupCreateMkStream": "xgroup|create", "XGroupSetID": "xgroup|setid", "XAutoClaimWithDeleted": "xautoclaim",
	"XPendingExt": "xpending", "XRangeN": "xrange", "XRevRangeN": "xrevrange", "Pipelined": "ping", "ForEachMaster": "ping",
}

// readByAPI are the files of shared/state that only the api needs.
var readByAPI = []string{"append.go", "feed.go", "moves.go"}

// A service whose Redis user lacks a key or a command fails only in the tests with containers.
func TestTheUsersOfRedisMayDoWhatTheServicesDo(t *testing.T) {
	dir := root(t)
	acl, err := os.ReadFile(filepath.Join(dir, "compose/redis/users.acl"))
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string][]string{}
	for _, m := range redisUser.FindAllStringSubmatch(string(acl), -1) {
		rules[m[1]] = strings.Fields(m[2])
	}
	may := func(what string, services ...string) bool {
		return slices.ContainsFunc(services, func(s string) bool { return slices.Contains(rules[s], what) })
	}
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	names := keyName.FindAllStringSubmatch(read("shared/state/keys.go"), -1)
	for _, m := range names {
		if !slices.ContainsFunc([]string{"~tierflow:" + m[1], "~tierflow:" + m[1] + ":*"}, func(key string) bool {
			return may(key, "api", "relocator", "committer")
		}) {
			t.Errorf("no user in compose/redis/users.acl has the keys tierflow:%s", m[1])
		}
	}
	found := 0
	for _, p := range packages(t) {
		var who [][]string // of each list, one service is enough
		switch p.path() {
		case "shared/stream":
			who = [][]string{{"relocator"}, {"committer"}}
		case "shared/state", "shared/assignment":
			who = [][]string{{"api", "relocator", "committer"}}
		default: // sends no commands: TestOnlyThesePackagesSendCommandsToRedis
			continue
		}
		for _, file := range p.GoFiles {
			who := who
			if p.path() == "shared/state" && slices.Contains(readByAPI, file) {
				who = [][]string{{"api"}}
			}
			text := read(p.path() + "/" + file)
			var all []string
			for _, m := range luaCall.FindAllStringSubmatch(text, -1) {
				command := strings.ToLower(m[1])
				if command == "xgroup" || command == "xinfo" {
					command += "|" + strings.ToLower(m[2])
				}
				all = append(all, command)
			}
			for _, m := range goCall.FindAllStringSubmatch(text, -1) {
				command, ok := commands[m[1]]
				if !ok {
					command = strings.ToLower(m[1])
				}
				all = append(all, command)
			}
			for _, command := range all {
				found++
				for _, services := range who {
					if !may("+"+command, services...) {
						t.Errorf("%s/%s uses %s: no user of %v in compose/redis/users.acl may", p.path(), file, command, services)
					}
				}
			}
		}
	}
	if len(names) < 8 || found < 40 {
		t.Fatalf("found only %d keys and %d commands", len(names), found)
	}
}
