// Package apikeys decides who may call the api. It reads keys with names and scopes from a file, which may change while the
// service runs.
//
// The file holds no key, only the SHA-256 of each key. That is enough because a key is not a password: it is 32 random
// bytes, which nobody can guess, however fast the hash is. A slow hash such as bcrypt protects passwords that people
// choose. Here it would only cost each request a tenth of a second of CPU time.
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

// Scopes. None is enough for calls that need no key.
const (
	Views   Scope = 1 << iota // post view counts
	Read                      // see items, locations, levels and the moves under way
	Operate                   // change items, pins and levels; pause, resume, retry
	None    Scope = 0
)

var scopeNames = []string{"views", "read", "operate"} // by bit

// String returns the names of the scopes with commas between them, as in the file.
func (s Scope) String() string {
	var names []string
	for bit, name := range scopeNames {
		if s&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// ParseScopes reads names of scopes with commas between them. It needs at least one.
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

// Key is what the service stores about a key.
type Key struct {
	Name   string
	Scopes Scope
	hash   [sha256.Size]byte
}

const (
	prefix = "tierflow_" // makes a key easy to recognise in a place where it does not belong, such as a log or a repository
	// maxToken is the length of the longest token that is hashed.
	maxToken = 128
	// Limits of the file. Every request is compared with all keys.
	maxKeys = 1000
	maxFile = 1 << 20
)

var (
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	validHash = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Generate makes a key. It returns the secret, which is to be shown once, and the key's line for the file, without a
// newline.
func Generate(name string, scopes Scope) (secret, line string, err error) {
	if !validName.MatchString(name) {
		return "", "", fmt.Errorf("%q is not a name of 1 to 64 letters, digits, dots, dashes and underscores", name)
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // Read never fails: on an error it ends the program
	secret = prefix + base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(secret))
	return secret, fmt.Sprintf("%s %s sha256:%x", name, scopes, hash), nil
}

// Parse reads a file with one key in each line: its name, scopes and hash. It ignores empty lines, and comments, which
// begin with # and take a whole line. The error names every wrong line. A file without any key is an error: it is still
// being written, or would shut everybody out.
func Parse(data []byte) ([]Key, error) {
	var ks []Key
	var problems []error
	names, hashes := map[string]int{}, map[[sha256.Size]byte]int{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		// The error does not repeat the line: somebody may have put a key there.
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

// Append adds a line to a file, and makes the file where there is none. The file must be valid before and after.
func Append(path, line string) error {
	// Everybody may read the file: it holds no secret, and the service often runs as another user.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// The lock keeps another new-key from adding the same name at the same time.
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

// match finds the key that has a hash. It always takes the same time, whichever key matches or none.
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
