package sweep_test

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tierflow/tierflow/relocator/internal/fsys"
	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/shared/state"
	"github.com/tierflow/tierflow/shared/stream"
)

func TestMain(m *testing.M) { relocatortest.Main(m) }

func TestTheEntryOfACrashedWorkerIsTakenOverAndItsTemporaryIsSwept(t *testing.T) {
	w := relocatortest.New(t)
	body := w.Item(1, "a")
	// A worker that dies after it has published: the lock, the entry and the temporary stay.
	w.Post(1, 5000)
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{})
	w.FS.Hook = func(step fsys.Step, _ string) error {
		if step == fsys.FsyncFolder {
			close(entered)
			<-ctx.Done() // never comes back while the others work
		}
		return nil
	}
	h := w.RelocateHandler("dying")
	w.FS.Hook = nil
	if err := w.Redis.XGroupCreateMkStream(ctx, w.Store.Keys().Views(), state.GroupRelocator, "0").Err(); err != nil {
		t.Fatal(err)
	}
	msgs, err := w.Redis.XReadGroup(ctx, &redis.XReadGroupArgs{Group: state.GroupRelocator, Consumer: "dying", Count: 1,
		Streams: []string{w.Store.Keys().Views(), ">"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for k, v := range msgs[0].Messages[0].Values {
		values[k] = v.(string)
	}
	handled := make(chan struct{})
	go func() {
		defer close(handled)
		h.Handle([]*stream.Delivery{{ID: msgs[0].Messages[0].ID, Values: values, Attempt: 1, Context: ctx}})
	}()
	<-entered
	defer func() { cancel(); <-handled }()

	w.Relocator("r2")
	w.Releaser("r2")
	w.Committer()
	w.Settled()
	if err := w.Sweeper().Once(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Lies(1, "gold", body)
}
