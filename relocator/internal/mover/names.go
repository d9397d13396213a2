package mover

import (
	"errors"
	"strings"

	"github.com/tierflow/tierflow/shared/item"
)

// tempName names an attempt's temporary in tmp/. Two attempts never share a name, so a process that was paused finds
// only its own files.
func tempName(id item.ID, eventID, token string) string {
	return id.String() + "." + eventID + "." + token
}

// releasedName names an attempt's folder in released/. Two attempts never share a name.
func releasedName(id item.ID, token string) string { return id.String() + "." + token }

func parseTemp(name string) (id item.ID, eventID, token string, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) != 3 || checkPart(parts[1]) != nil || checkPart(parts[2]) != nil {
		return 0, "", "", false
	}
	id, err := item.ParseID(parts[0])
	return id, parts[1], parts[2], err == nil
}

func parseReleased(name string) (id item.ID, ok bool) {
	cid, token, found := strings.Cut(name, ".")
	if !found || checkPart(token) != nil {
		return 0, false
	}
	id, err := item.ParseID(cid)
	return id, err == nil
}

// checkPart refuses event ids and tokens that could be paths: they come from Redis.
func checkPart(s string) error {
	ok := s != "" && len(s) <= 64
	for i := range len(s) {
		c := s[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return errors.New("an event id or token must have 1 to 64 letters, digits, '-' or '_'")
	}
	return nil
}
