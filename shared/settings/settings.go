// Package settings turns flags and environment variables into values. It collects everything that is wrong with them, so
// that an operator sees all of it at once.
package settings

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tierflow/tierflow/shared/logging"
)

// Problems collects what is wrong. Each method returns the value of a setting. Where the value is wrong, the method adds a
// problem and returns zero. name is always the setting's environment variable.
type Problems struct{ list []string }

// Add adds a problem of a setting.
func (p *Problems) Add(name, format string, args ...any) {
	p.list = append(p.list, name+": "+fmt.Sprintf(format, args...))
}

// Err returns an error that names every problem, one in each line, or nil where there is none.
func (p *Problems) Err() error {
	if len(p.list) == 0 {
		return nil
	}
	return errors.New("settings are wrong:\n  " + strings.Join(p.list, "\n  "))
}

// Duration reads a duration of at least minimum, in Go's form: 30s, 1h30m, 0.
func (p *Problems) Duration(name, value string, minimum time.Duration) time.Duration {
	d, err := time.ParseDuration(value)
	switch {
	case err != nil:
		p.Add(name, "%q is not a duration such as 30s or 5m", value)
	case d < minimum:
		p.Add(name, "%s is less than %s", value, minimum)
	default:
		return d
	}
	return 0
}

// Int reads a whole number from minimum to maximum. math.MaxInt64 is no maximum.
func (p *Problems) Int(name, value string, minimum, maximum int64) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < minimum || n > maximum {
		if maximum == math.MaxInt64 {
			p.Add(name, "%q is not a whole number of %d or more", value, minimum)
		} else {
			p.Add(name, "%q is not a whole number from %d to %d", value, minimum, maximum)
		}
		return 0
	}
	return n
}

// Rate reads a number of bytes per second, with or without a unit. Units are K, M, G (powers of 1000) and Ki, Mi, Gi
// (powers of 1024), each with or without B. 0 and "" mean no limit.
func (p *Problems) Rate(name, value string) int64 {
	num := strings.TrimSuffix(value, "B")
	factor := int64(1)
	for suffix, f := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "K": 1e3, "M": 1e6, "G": 1e9} {
		if s, ok := strings.CutSuffix(num, suffix); ok {
			num, factor = s, f
			break
		}
	}
	if value == "" {
		return 0
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		p.Add(name, "%q is not a number of bytes a second such as 100MiB, or 0 for no limit", value)
		return 0
	}
	return n * factor
}

// Address reads host:port.
func (p *Problems) Address(name, value string) string {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		p.Add(name, "%q is not an address such as 127.0.0.1:5000", value)
		return ""
	}
	return value
}

// URL reads the http or https URL of a service.
func (p *Problems) URL(name, value string) *url.URL {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		p.Add(name, "%q is not a URL such as http://127.0.0.1:5000", value)
		return nil
	}
	return u
}

// OneOf reads one of the choices.
func (p *Problems) OneOf(name, value string, choices []string) string {
	if !slices.Contains(choices, value) {
		p.Add(name, "%q is none of %s", value, strings.Join(choices, ", "))
		return ""
	}
	return value
}

// Secret returns value, or the text of a file where one is given, without newlines at its end.
func (p *Problems) Secret(name, value, file string) string {
	if file == "" {
		return value
	}
	b, err := os.ReadFile(file)
	if err != nil {
		p.Add(name+"_FILE", "%v", err)
		return ""
	}
	return strings.TrimRight(string(b), "\r\n")
}

// Common has the settings of all three services, as kong fills them.
type Common struct {
	RedisURL     string `name:"redis-url" env:"TIERFLOW_REDIS_URL" default:"redis://127.0.0.1:6379/0" help:"Redis, as redis://, rediss:// or unix:// URL; a cluster as redis+cluster://host1:port,host2:port."`
	RedisURLFile string `name:"redis-url-file" env:"TIERFLOW_REDIS_URL_FILE" help:"A file that holds the URL of Redis."`
	RedisPrefix  string `name:"redis-prefix" env:"TIERFLOW_REDIS_PREFIX" default:"tierflow:" help:"Begins the name of every key."`
	MySQLDSN     string `name:"mysql-dsn" env:"TIERFLOW_MYSQL_DSN" default:"tierflow:tierflow@tcp(127.0.0.1:3306)/tierflow" help:"MySQL, as user:password@tcp(host:port)/database. No parameters are needed."`
	MySQLDSNFile string `name:"mysql-dsn-file" env:"TIERFLOW_MYSQL_DSN_FILE" help:"A file that holds the DSN of MySQL."`
	MinIdle      string `name:"min-idle" env:"TIERFLOW_MIN_IDLE" default:"30s" help:"After so long without a sign of life from a worker, others take over its entries, and its locks expire."`
	StateTTL     string `name:"state-ttl" env:"TIERFLOW_STATE_TTL" default:"24h" help:"How long the state of an item stays in Redis once its event is settled; at least 1m."`
	Partitions   string `name:"partitions" env:"TIERFLOW_PARTITIONS" default:"1" help:"Number of partitions that items are spread over, 1 to 1024: the same in all services, and not to be changed while entries are under way. Redis Cluster needs 2 or more."`
	Drain        string `name:"drain" env:"TIERFLOW_DRAIN" default:"20s" help:"How long work in hand may go on after SIGTERM."`
	LogLevel     string `name:"log-level" env:"TIERFLOW_LOG_LEVEL" default:"info" help:"debug, info, warn or error."`
	LogFormat    string `name:"log-format" env:"TIERFLOW_LOG_FORMAT" default:"json" help:"json or console."`
}

// MinStateTTL is the lower bound of TIERFLOW_STATE_TTL. Whoever posts a count again reads the row first, and then appends
// where the state is as it was. Within that time, at most 30 s, no newer event may be settled and its state expire.
const MinStateTTL = time.Minute

// maxPartitions is far more than any cluster has nodes.
const maxPartitions = 1024

// CommonValues are the values of Common.
type CommonValues struct {
	RedisURL, RedisPrefix, MySQLDSN string
	Partitions                      int
	MinIdle, StateTTL, Drain        time.Duration
	LogLevel, LogFormat             string
}

// Check turns Common into values and adds what is wrong. It does not parse URL and DSN: the callers that use them do, and
// add their problems.
func (c Common) Check(p *Problems) CommonValues {
	v := CommonValues{
		RedisURL:    p.Secret("TIERFLOW_REDIS_URL", c.RedisURL, c.RedisURLFile),
		RedisPrefix: c.RedisPrefix,
		Partitions:  int(p.Int("TIERFLOW_PARTITIONS", c.Partitions, 1, maxPartitions)),
		MySQLDSN:    p.Secret("TIERFLOW_MYSQL_DSN", c.MySQLDSN, c.MySQLDSNFile),
		MinIdle:     p.Duration("TIERFLOW_MIN_IDLE", c.MinIdle, 100*time.Millisecond),
		StateTTL:    p.Duration("TIERFLOW_STATE_TTL", c.StateTTL, MinStateTTL),
		Drain:       p.Duration("TIERFLOW_DRAIN", c.Drain, 0),
		LogLevel:    p.OneOf("TIERFLOW_LOG_LEVEL", c.LogLevel, logging.Levels),
		LogFormat:   p.OneOf("TIERFLOW_LOG_FORMAT", c.LogFormat, logging.Formats),
	}
	if strings.ContainsAny(c.RedisPrefix, "{} \n") {
		p.Add("TIERFLOW_REDIS_PREFIX", "%q has a brace, a space or a newline", c.RedisPrefix)
	}
	if scheme, _, _ := strings.Cut(v.RedisURL, "://"); v.Partitions == 1 && strings.HasSuffix(scheme, "+cluster") {
		p.Add("TIERFLOW_PARTITIONS", "Redis Cluster needs 2 or more: with 1, the keys of an item are in different slots")
	}
	return v
}

// Worker has the setting that names a worker.
type Worker struct {
	WorkerID string `name:"worker-id" env:"TIERFLOW_WORKER_ID" help:"Name of this worker: no other living worker has it, and it is best the same after a restart. Default: host name and process id."`
}

// Check returns the name. The default has the host name and the process id, because a host may run several workers and the
// process id in a container is always 1.
func (w Worker) Check(p *Problems) string {
	if w.WorkerID == "" {
		host, err := os.Hostname()
		if err != nil {
			p.Add("TIERFLOW_WORKER_ID", "no default could be made: %v", err)
		}
		return host + "-" + strconv.Itoa(os.Getpid())
	}
	if len(w.WorkerID) > 128 || strings.ContainsFunc(w.WorkerID, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' || r == '"' || r == '\\' }) {
		p.Add("TIERFLOW_WORKER_ID", "%q must have 1 to 128 printable ASCII characters without space, comma, quote and backslash", w.WorkerID)
	}
	return w.WorkerID
}

// Parse fills cli, a pointer to a struct with kong's tags, from arguments and environment. It returns the verb. An error
// means exit code 2. --help prints and ends the process. A variable that is set but empty counts as not set, because
// ${X:-} in a compose file is empty where X is missing.
func Parse(program, description string, cli any, args []string) (verb string, err error) {
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "TIERFLOW_") && value == "" {
			if err := os.Unsetenv(name); err != nil {
				return "", err
			}
		}
	}
	k, err := kong.New(cli, kong.Name(program), kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		return "", err
	}
	ctx, err := k.Parse(args)
	if err != nil {
		return "", fmt.Errorf("%w (see %s --help)", err, program)
	}
	verb, _, _ = strings.Cut(ctx.Command(), " <")
	return verb, nil
}
