package stream_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tierflow/tierflow/shared/stream"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

// failures counts the commands of a client that fail, by what they are for.
type failures struct {
	redis.Hook
	reads, renewals atomic.Int64
}

func (f *failures) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		args := cmd.Args()
		switch {
		case err == nil:
		case args[0] == "evalsha" && args[1] == stream.RenewScript.Hash():
			f.renewals.Add(1)
		default:
			f.reads.Add(1)
		}
		return err
	}
}

// While a server is away, a service holds its consumers. Then they ask Redis now and then, and most of their rounds ask nothing.
func TestWhatIsTriedAgainWhileRedisIsAwayIsLoggedWhenItBeginsAndWhenItEnds(t *testing.T) {
	for name, holds := range map[string]bool{"reading": false, "held": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			gate, url := testserver.RedisGate(t, w.url)
			client := w.client(url)
			f := &failures{Hook: &hook{}}
			client.AddHook(f)
			core, logs := observer.New(zap.InfoLevel)
			var away atomic.Bool
			handle, got := w.handler()
			w.run(stream.Options{Redis: client, Handle: handle, Slots: 2, Adopt: short / 2, Log: zap.New(core),
				Hold: func() bool { return holds && away.Load() }})
			w.add(1)
			inHand := next(w, got) // the heartbeat renews it
			began := time.Now()
			gate.Close()
			away.Store(true)
			testserver.Eventually(w, "much is tried again", time.Minute, func() error {
				if f.reads.Load() < 12 || f.renewals.Load() < 3 {
					return fmt.Errorf("%d reads, %d renewals", f.reads.Load(), f.renewals.Load())
				}
				return nil
			})
			lasted := int(time.Since(began) / time.Minute)
			logged := func(message string) int { return logs.FilterMessage(message).Len() }
			for _, what := range []string{"reads of the stream", "renewals of entries in hand"} {
				if begun, ended := logged(what+" wait and are tried again"), logged(what+" wait no more"); begun < 1 || begun > 1+lasted || ended != 0 {
					t.Errorf("%s: logged %d times that they wait, %d times that it is over", what, begun, ended)
				}
			}
			gate.Open()
			away.Store(false)
			testserver.Eventually(w, "the end is logged", time.Minute, func() error {
				for _, what := range []string{"reads of the stream", "renewals of entries in hand"} {
					if n := logged(what + " wait no more"); n != 1 {
						return fmt.Errorf("%s: %d times", what, n)
					}
				}
				return nil
			})
			w.settle(inHand)
			w.nothingIsLeft()
		})
	}
}
