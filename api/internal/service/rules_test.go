package service_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tierflow/tierflow/api/client"
)

const ruledLevels = `{"mode":"observe","levels":[
	{"level":"bronze","min_counts":0,"max_counts":999,"path":"/t/bronze"},
	{"level":"silver","min_counts":1000,"max_counts":1999,"path":"/t/silver","demote_counts":800,"min_residency":3600},
	{"level":"gold","min_counts":2000,"path":"/t/gold","state":"draining"}]}`

func TestLevelsTakeAndShowTheirRules(t *testing.T) {
	a := start(t, options{})
	var l client.Levels
	a.want(200, "PUT", "/v1/levels", ruledLevels, &l)
	silver, gold := l.Levels[1], l.Levels[2]
	if l.Mode != "observe" || silver.DemoteCounts == nil || *silver.DemoteCounts != 800 || silver.MinResidency != 3600 ||
		silver.State != "" || gold.State != "draining" || gold.DemoteCounts != nil {
		t.Errorf("%+v", l)
	}
	a.want(200, "PUT", "/v1/levels", newLevels, nil)
	if _, body := a.do("GET", "/v1/levels", "", ""); strings.Contains(body, "demote") || strings.Contains(body, "state") ||
		strings.Contains(body, "residency") || strings.Contains(body, "mode") {
		t.Errorf("levels without rules are not answered as before: %s", body)
	}
}

func TestWrongRulesAreRefusedTogether(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "gold", "g.mp4")
	a.want(200, "PUT", "/v1/contents/7/pin", `{"level":"gold"}`, nil)
	p := a.wantProblem("PUT", "/v1/levels", jsonT, `{"mode":"watch","levels":[
		{"level":"bronze","min_counts":0,"max_counts":999,"path":"/t/bronze","state":"draining"},
		{"level":"silver","min_counts":1000,"max_counts":1999,"path":"/t/silver","demote_counts":1001,"state":"full"},
		{"level":"gold","min_counts":2000,"path":"/t/gold","state":"draining","min_residency":-1}]}`, 422, "unprocessable", "")
	for _, want := range []string{`no mode "watch"`, "it is the lowest level, so it cannot be draining", "demoted below 1001", `no state "full"`,
		`"gold": it cannot drain while 1 items are pinned to it`, "its residency of -1s"} {
		if !strings.Contains(p.Detail, want) {
			t.Errorf("the error does not say %q: %s", want, p.Detail)
		}
	}
	p = a.wantProblem("PUT", "/v1/levels", jsonT, `{"levels":[{"level":"a","min_counts":0,"path":"/a","demote":1},{"level":"b","path":"/b"}]}`,
		400, "malformed", "")
	for _, want := range []string{`levels[0]: unknown field "demote"`, "levels[1]: min_counts is missing"} {
		if !strings.Contains(p.Detail, want) {
			t.Errorf("the error does not say %q: %s", want, p.Detail)
		}
	}
}

func TestAPinEndsAndIsNotTakenByADrainingLevel(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "bronze", "g.mp4")
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second).Format(time.RFC3339)
	var c client.Item
	a.want(200, "PUT", "/v1/contents/7/pin", `{"level":"silver","until":"`+until+`"}`, &c)
	if d := c.Decision; c.PinnedUntil == nil || d == nil || d.Target != "silver" || d.Reason != "pinned" || d.ReviewAt == nil {
		t.Fatalf("%+v, %+v", c, c.Decision)
	}
	a.exec("UPDATE contents SET pinned_until = '2020-01-01' WHERE cid = 7")
	a.want(200, "GET", "/v1/contents/7", "", &c)
	if d := c.Decision; d == nil || d.Target != "bronze" || d.Reason != "count" {
		t.Errorf("%+v", c.Decision)
	}
	a.wantProblem("PUT", "/v1/contents/7/pin", jsonT, `{"level":"silver","until":"2020-01-01T00:00:00Z"}`, 422, "unprocessable", "would have ended")
	a.wantProblem("PUT", "/v1/contents/7/pin", jsonT, `{"level":"silver","until":"tomorrow"}`, 400, "malformed", "until is no time")
	a.want(200, "PUT", "/v1/levels", strings.Replace(ruledLevels, `"mode":"observe",`, "", 1), nil)
	a.wantProblem("PUT", "/v1/contents/7/pin", jsonT, `{"level":"gold"}`, 422, "unprocessable", `level "gold" is draining`)
}

func TestAnItemOnALevelThatDrainsIsReevaluatedEvenIfItWasNeverCounted(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "gold", "g.mp4")
	a.insert(8, "silver", "h.mp4")
	a.want(200, "PUT", "/v1/levels", strings.Replace(ruledLevels, `"mode":"observe",`, "", 1), nil)
	a.eventuallyViews(0, "7=0")
}

func TestAnItemSaysWhatIsDecidedOfItAndWhy(t *testing.T) {
	a := start(t, options{})
	a.insert(7, "gold", "g.mp4")
	var c client.Item
	a.want(200, "GET", "/v1/contents/7", "", &c)
	if c.Decision != nil {
		t.Errorf("it was never counted: %+v", c.Decision)
	}
	a.want(200, "PUT", "/v1/levels", strings.Replace(strings.Replace(ruledLevels, `"mode":"observe",`, "", 1), `"state":"draining"`,
		`"demote_counts":1600`, 1), nil)
	a.post("cid=7&count=1700")
	a.want(200, "GET", "/v1/contents/7", "", &c)
	if d := c.Decision; d == nil || d.Target != "gold" || d.Wanted != "silver" || d.Reason != "hysteresis" || d.Count != 1700 ||
		d.FromCount != 1600 || d.ToCount != nil || d.ReviewAt != nil || d.Enforced != nil {
		t.Errorf("%+v", d)
	}
}
