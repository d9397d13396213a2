// Package apikeys knows who may call the api: keys with names and scopes, read from a file that may change while the
// service runs.
//
// The file holds no key, only the SHA-256 of each. That is enough because a key is not a password: it is 32 random bytes,
// which nobody can guess or look up, however fast hashes are made. A slow hash such as bcrypt protects what people choose;
// here it would only cost every request a tenth of a second of a core.
package apikeys

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
)

// Scope is a set of rights.
type Scope uint8

// Scopes. None is enough for what everybody may have.
const (
	Views   Scope = 1 << iota // post view counts
	Read                      // see contents, locations, levels, what is under way
	Operate                   // change contents, pins, levels; pause, resume, retry
	None    Scope = 0
)

var scopeNames = []string{"views", "read", "operate"} // by bit

// String is the scopes' names as the file has them, with commas between.
func (s Scope) String() string {
	var names []string
	for bit, name := range scopeNames {
		if s&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// ParseScopes reads names with commas between; at least one.
func ParseScopes(text string) (Scope, error) {
	var s Scope
next:
	for name := range strings.SplitSeq(text, ",") {
		for bit, known := range scopeNames {
			if name == known {
				s |= 1 << bit
				continue next
			}
		}
		return 0, fmt.Errorf("%q is no scope: there are %s", name, strings.Join(scopeNames, ", "))
	}
	return s, nil
}

// Key is what the service knows of a key.
type Key struct {
	Name   string
	Scopes Scope
	hash   [sha256.Size]byte
}

const (
	prefix = "tierflow_" // so that a key is recognised where it does not belong: in a log, in a repository
	// maxToken bounds what is hashed.
	maxToken = 128
	// Limits of the file. All keys are compared at every request.
	maxKeys = 1000
	maxFile = 1 << 20
)

var (
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	validHash = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Generate makes a key: the secret, to be shown once, and its line for the file, without a newline.
func Generate(name string, scopes Scope) (secret, line string, err error) {
	if !validName.MatchString(name) {
		return "", "", fmt.Errorf("%q is not a name of 1 to 64 letters, digits, dots, dashes and underscores", name)
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the program instead
	secret = prefix + base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(secret))
	return secret, fmt.Sprintf("%s %s sha256:%x", name, scopes, hash), nil
}

// Parse reads a file: a key a line, with its name, scopes and hash; empty lines and lines that begin with # say nothing.
// The error names every wrong line. A file without any key is wrong: it is being written, or would shut everybody out.
func Parse(data []byte) ([]Key, error) {
	var ks []Key
	var problems []error
	names, hashes := map[string]int{}, map[[sha256.Size]byte]int{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		// What a line holds is not repeated: it may be a key that somebody has put there.
		wrong := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("line %d: %s", n, fmt.Sprintf(format, args...)))
		}
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 {
			wrong("there are %d words, not 3: name, scopes, hash", len(fields))
			continue
		}
		k := Key{Name: fields[0]}
		var err error
		if k.Scopes, err = ParseScopes(fields[1]); err != nil {
			wrong("the second word is not some of %s, with commas and no spaces between", strings.Join(scopeNames, ", "))
		}
		if !validName.MatchString(k.Name) {
			wrong("the first word is not a name of 1 to 64 letters, digits, dots, dashes and underscores")
		} else if names[k.Name] != 0 {
			wrong("line %d has the same name", names[k.Name])
		}
		if !validHash.MatchString(fields[2]) {
			wrong("the third word is not sha256: and 64 hexadecimal digits in lower case")
			continue
		}
		if _, err := hex.Decode(k.hash[:], []byte(fields[2][len("sha256:"):])); err != nil {
			wrong("%v", err)
		} else if hashes[k.hash] != 0 {
			wrong("line %d has the same hash", hashes[k.hash])
		}
		names[k.Name], hashes[k.hash] = n, n
		ks = append(ks, k)
	}
	if len(problems) == 0 && len(ks) == 0 {
		problems = append(problems, errors.New("it holds no key: make one with api new-key"))
	}
	if len(ks) > maxKeys {
		problems = append(problems, fmt.Errorf("it holds %d keys, more than %d", len(ks), maxKeys))
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return ks, nil
}

// Append adds a line to a file, which is made where there is none. The file must be right, and stays so.
func Append(path, line string) error {
	// Everybody may read it: it holds no secret, and the service is often another user.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// Another new-key must not have the same name in mind.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return err
	}
	addition := []byte(line + "\n")
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\n")) {
		addition = append([]byte("\n"), addition...)
	}
	if _, err := Parse(append(data, addition...)); err != nil {
		return fmt.Errorf("%s, with the new line: %w", path, err)
	}
	if _, err := f.Write(addition); err != nil {
		return err
	}
	return f.Sync()
}

// match finds the key that has a hash. It takes the same time whichever it is, or none.
func match(ks []Key, hash *[sha256.Size]byte) *Key {
	found := -1
	for i := range ks {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(ks[i].hash[:], hash[:]), i, found)
	}
	if found < 0 {
		return nil
	}
	return &ks[found]
}
