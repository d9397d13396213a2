package service_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/api/internal/apikeys"
	"github.com/tierflow/tierflow/api/internal/service"
	"github.com/tierflow/tierflow/shared/settings"
)

func good() service.Settings {
	return service.Settings{Common: settings.Common{RedisURL: "redis://127.0.0.1:6379/0", RedisPrefix: "t:", MySQLDSN: "u:p@tcp(127.0.0.1:3306)/d",
		MinIdle: "30s", StateTTL: "24h", Partitions: "1", Drain: "20s", LogLevel: "info", LogFormat: "json"},
		Listen: "127.0.0.1:5000", MaxBacklog: "1000000"}
}

func TestWrongSettingsAreAllNamedAtOnce(t *testing.T) {
	s := good()
	s.RedisURL, s.MySQLDSN, s.Listen, s.MaxBacklog, s.Drain, s.LogLevel = "foo", "bar", "0.0.0.0:5000", "0", "soon", "loud"
	_, err := s.Check()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"REDIS_URL", "MYSQL_DSN", "LISTEN", "MAX_BACKLOG", "DRAIN", "LOG_LEVEL"} {
		if !strings.Contains(err.Error(), "TIERFLOW_"+name+":") {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
}

func TestAnAddressThatOthersReachNeedsKeysOrInsecureNoAuth(t *testing.T) {
	_, line := newKey(t, "a", apikeys.Read)
	keysFile := writeKeys(t, filepath.Join(t.TempDir(), "keys"), line)
	for address, reached := range map[string]bool{"127.0.0.1:5000": false, "[::1]:5000": false, "localhost:0": false, "127.1.2.3:1": false,
		"0.0.0.0:5000": true, ":5000": true, "[::]:5000": true, "192.168.1.1:5000": true, "example.org:5000": true} {
		s := good()
		s.Listen = address
		if _, err := s.Check(); (err != nil) != reached {
			t.Errorf("%s: %v", address, err)
		}
		s.InsecureNoAuth = true
		if _, err := s.Check(); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		s.InsecureNoAuth, s.APIKeysFile = false, keysFile
		if _, err := s.Check(); err != nil {
			t.Errorf("%s with API keys: %v", address, err)
		}
	}
}

func TestAWrongFileOfKeysIsAWrongSetting(t *testing.T) {
	s := good()
	for text, want := range map[string]string{"": "api new-key", "x read sha256:12\n": "line 1"} {
		s.APIKeysFile = writeKeys(t, filepath.Join(t.TempDir(), "keys"), text)
		s.InsecureNoAuth = true // does not make a wrong file a right one
		if _, err := s.Check(); err == nil || !strings.Contains(err.Error(), "TIERFLOW_API_KEYS_FILE: "+s.APIKeysFile) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	s.APIKeysFile = "/nowhere/keys"
	if _, err := s.Check(); err == nil || !strings.Contains(err.Error(), "/nowhere/keys") {
		t.Errorf("no file: %v", err)
	}
}
