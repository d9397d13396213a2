package logging_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tierflow/tierflow/shared/logging"
)

// In a child process, the test binary logs one line of each level.
func TestMain(m *testing.M) {
	if level := os.Getenv("LOGGING_TEST_LEVEL"); level != "" {
		log := logging.New("api", level, os.Getenv("LOGGING_TEST_FORMAT"))
		log.Debug("one", zap.Int("n", 1))
		log.Info("two")
		log.Warn("three")
		log.Error("four")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// logged returns the lines that a program writes on standard error. It must write nothing on standard output.
func logged(t *testing.T, level, format string) []string {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "LOGGING_TEST_LEVEL="+level, "LOGGING_TEST_FORMAT="+format, "GORACE=atexit_sleep_ms=0")
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	if err := c.Run(); err != nil {
		t.Fatal(err, stderr.String())
	}
	if out.Len() > 0 {
		t.Errorf("standard output: %s", out.String())
	}
	return strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
}

func TestALevelHidesTheLevelsBelowIt(t *testing.T) {
	for i, level := range logging.Levels {
		for _, format := range logging.Formats {
			if lines := logged(t, level, format); len(lines) != len(logging.Levels)-i {
				t.Errorf("%s, %s: %q", level, format, lines)
			}
		}
	}
}

func TestAJSONLineHasTimeLevelMessageProgramAndFields(t *testing.T) {
	var line struct {
		Time    time.Time
		Level   string
		Msg     string
		Program string
		N       int
	}
	if err := json.Unmarshal([]byte(logged(t, "debug", "json")[0]), &line); err != nil {
		t.Fatal(err)
	}
	if time.Since(line.Time) > time.Minute || line.Level != "debug" || line.Msg != "one" || line.Program != "api" || line.N != 1 {
		t.Errorf("%+v", line)
	}
}
