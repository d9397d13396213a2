package apikeys

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tierflow/tierflow/shared/fault"
)

// The limit of wrong keys from one place. A client with a wrong setting still learns why it fails, and nobody can fill the
// log.
const (
	wrongAtOnce    = 100
	wrongPerSecond = 5
)

// Guard decides which key may make which call.
type Guard struct {
	keys func() []Key

	// Wrong keys are counted by the place that they come from. When there are many places, some share a counter: that only
	// limits clients that show wrong keys. The seed keeps a client from choosing a place to share with.
	seed  maphash.Seed
	mu    sync.Mutex
	wrong [1024]*rate.Limiter
}

// NewGuard makes a Guard. It calls keys at every request.
func NewGuard(keys func() []Key) *Guard {
	return &Guard{keys: keys, seed: maphash.MakeSeed()}
}

// Allow reports whether a request shows a key with the scope. For None, no key is needed. The error says what is wrong. Of
// an unknown key it says no more than that. Allow adds the headers that the answer needs. A right key costs one hash and no
// allocation.
func (g *Guard) Allow(r *http.Request, header http.Header, scope Scope) error {
	if scope == None {
		return nil
	}
	values := r.Header["Authorization"]
	if len(values) == 0 {
		header.Set("WWW-Authenticate", `Bearer realm="tierflow"`)
		return fault.New(fault.Unauthorized, "", "", errors.New("this call needs an API key: Authorization: Bearer <key>"))
	}
	if key := g.find(values); key != nil {
		if key.Scopes&scope == scope {
			return nil
		}
		header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="tierflow", error="insufficient_scope", scope="%s"`, scope))
		return fault.New(fault.Forbidden, "", "", fmt.Errorf("the key %s may not do this: it has the scopes %s and lacks %s", key.Name, key.Scopes, scope))
	}
	if !g.limiter(r.RemoteAddr).AllowN(time.Now(), 1) {
		header.Set("Retry-After", "1")
		return fault.New(fault.RateLimited, "", "", errors.New("too many wrong API keys have come from this address; right ones are not limited"))
	}
	header.Set("WWW-Authenticate", `Bearer realm="tierflow", error="invalid_token"`)
	return fault.New(fault.Unauthorized, "", "", errors.New("the API key is not a valid one"))
}

// find looks for the key that a request shows.
func (g *Guard) find(values []string) *Key {
	const scheme = "Bearer "
	if len(values) != 1 || len(values[0]) <= len(scheme) || !strings.EqualFold(values[0][:len(scheme)], scheme) {
		return nil
	}
	token := strings.Trim(values[0][len(scheme):], " ")
	var buf [maxToken]byte // converting a string would allocate
	if token == "" || len(token) > len(buf) {
		return nil
	}
	hash := sha256.Sum256(buf[:copy(buf[:], token)])
	return match(g.keys(), &hash)
}

// limiter returns the counter of the place that an address belongs to. For IPv6, a place is a network of the size that one
// customer has.
func (g *Guard) limiter(remote string) *rate.Limiter {
	place := remote
	if at, err := netip.ParseAddrPort(remote); err == nil {
		addr := at.Addr().Unmap()
		place = addr.String()
		if addr.Is6() {
			if network, err := addr.Prefix(64); err == nil {
				place = network.String()
			}
		}
	}
	i := maphash.String(g.seed, place) % uint64(len(g.wrong))
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wrong[i] == nil {
		g.wrong[i] = rate.NewLimiter(wrongPerSecond, wrongAtOnce)
	}
	return g.wrong[i]
}
