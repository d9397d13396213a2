package service_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/shared/testenv/testserver"
)

const newLevels = `{"levels":[
	{"level":"bronze","min_counts":0,"max_counts":99,"path":"/t/bronze"},
	{"level":"silver","min_counts":100,"max_counts":999,"path":"/t/silver"},
	{"level":"gold","min_counts":1000,"path":"/t/gold"}]}`

// eventuallyViews waits until exactly these views, in any order, follow the first behind views.
func (a *api) eventuallyViews(behind int, want ...string) {
	a.t.Helper()
	testserver.Eventually(a.t, strings.Join(want, " "), 30*time.Second, func() error {
		if got := strings.Join(a.views()[behind:], " "); got != strings.Join(want, " ") {
			return errors.New(got)
		}
		return nil
	})
}

// changes returns the number of changes of the levels that are not done.
func (a *api) changes() (n int) {
	a.t.Helper()
	if err := a.db.DB().QueryRowContext(a.t.Context(), "SELECT COUNT(*) FROM level_change").Scan(&n); err != nil {
		a.t.Fatal(err)
	}
	return n
}

func TestAChangeOfLevelsThatAnAPICannotFinishIsFinishedByAnother(t *testing.T) {
	gate, url := testserver.RedisGate(t, testserver.Redis(t))
	dsn, prefix := testserver.MySQL(t), testserver.Prefix(t)
	one := start(t, options{redisURL: url, mysqlDSN: dsn, prefix: prefix})
	var want []string
	for id := 1; id <= 5; id++ {
		one.insert(id, "bronze", fmt.Sprint(id))
		one.post(fmt.Sprintf("cid=%d&count=500", id))
		want = append(want, fmt.Sprintf("%d=500", id))
	}
	appends := 0
	gate.Judge(func(request []byte) testserver.Fate {
		if bytes.Contains(request, []byte(":views")) && bytes.Contains(request, []byte("evalsha")) {
			if appends++; appends > 2 {
				return testserver.LoseRequest
			}
		}
		return testserver.Pass
	})
	one.want(200, "PUT", "/v1/levels", newLevels, nil)
	two := start(t, options{mysqlDSN: dsn, prefix: prefix})
	testserver.Eventually(t, "all are posted again", 30*time.Second, func() error {
		two.passes("2 MINUTE") // the claims of what was lost end
		got := two.views()[5:]
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	testserver.Eventually(t, "it is done", 30*time.Second, func() error {
		if n := two.changes(); n != 0 {
			return fmt.Errorf("%d changes", n)
		}
		return nil
	})
}

func TestAChangeOfLevelsContinuesAfterTheLastItemReevaluated(t *testing.T) {
	a := start(t, options{})
	for id := 1; id <= 5; id++ {
		a.insert(id, "bronze", fmt.Sprint(id))
		a.post(fmt.Sprintf("cid=%d&count=1500", id))
	}
	// The api that changed the levels was killed after item 3.
	a.exec("UPDATE `level` SET max_counts = 1799 WHERE content_level = 'bronze'")
	a.exec("UPDATE `level` SET min_counts = 1800 WHERE content_level = 'silver'")
	a.exec(`INSERT INTO level_change (change_id, before_levels, after_cid) VALUES ('c', '[{"level":"bronze","min_counts":0,"max_counts":999}]', 3)`)
	a.eventuallyViews(5, "4=1500", "5=1500")
}

func TestAnItemIsRegisteredOnTheLowestLevelOfAValidPolicyOnly(t *testing.T) {
	a := start(t, options{})
	a.exec("UPDATE `level` SET min_counts = 1500 WHERE content_level = 'silver'")
	a.wantProblem("POST", "/v1/contents", jsonT, `{"cid":7,"filename":"g.mp4"}`, 422, "unprocessable", "counts 1000 to 1499 belong to no level")
	a.exec("UPDATE `level` SET min_counts = 1000 WHERE content_level = 'silver'")
	var c client.Item
	a.want(201, "POST", "/v1/contents", `{"cid":7,"filename":"g.mp4"}`, &c)
	if c.Level != "bronze" {
		t.Errorf("%+v", c)
	}
}
