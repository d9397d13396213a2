package catalog_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/shared/catalog"
	"github.com/tierflow/tierflow/shared/item"
)

// due returns the ids that LockDue locks, in a transaction that is open until the test ends.
func due(t *testing.T, c *catalog.Catalog, limit int) (ids []item.ID) {
	t.Helper()
	tx, err := c.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	rows, err := catalog.LockDue(t.Context(), tx, limit)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestDueReviewsComeInTheirOrderAndLockedRowsAreLeftOut(t *testing.T) {
	c := migrated(t)
	for id, review := range map[int]string{1: "NULL", 2: "UTC_TIMESTAMP(6) + INTERVAL 1 HOUR", 3: "'2026-01-02'", 4: "'2026-01-01'",
		5: "'2026-01-02'", 6: "UTC_TIMESTAMP(6)"} {
		insert(t, c, id, "gold", fmt.Sprint(id))
		exec(t, c, "UPDATE contents SET review_at = "+review+" WHERE cid = ?", id)
	}
	if got, want := due(t, c, 2), []item.ID{4, 3}; !slices.Equal(got, want) {
		t.Errorf("%v are due, want %v", got, want)
	}
	if got, want := due(t, c, 10), []item.ID{5, 6}; !slices.Equal(got, want) { // the others are locked
		t.Errorf("%v are due, want %v", got, want)
	}
}

func TestDueReviewsAreFoundByTheirIndex(t *testing.T) {
	c := migrated(t)
	fill(t, c, 5000)
	exec(t, c, "UPDATE contents SET review_at = '2026-01-01' + INTERVAL cid SECOND WHERE cid % 2 = 0")
	exec(t, c, "ANALYZE TABLE contents")
	for _, query := range []string{
		"SELECT * FROM contents " + strings.Replace(catalog.DueRows, "?", "1000", 1),
		"SELECT EXISTS (SELECT 1 FROM contents WHERE review_at <= UTC_TIMESTAMP(6))",
	} {
		if plan := explain(t, c, query); !strings.Contains(plan, "contents_review") || strings.Contains(strings.ToLower(plan), "sort") {
			t.Errorf("%s\n%s", query, plan)
		}
	}
}

// explain returns the server's plan as lines of column=value.
func explain(t *testing.T, c *catalog.Catalog, query string) string {
	t.Helper()
	rows, err := c.DB().QueryContext(t.Context(), "EXPLAIN "+query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			fmt.Fprintf(&plan, "%s=%s ", columns[i], v.String)
		}
		plan.WriteString("\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

func TestAChangeOfLevelsThatIsUnderWaySurvivesTheMigration(t *testing.T) {
	c := migrated(t)
	// The schema of the version before.
	exec(t, c, "RENAME TABLE level_change TO appraisal")
	exec(t, c, "ALTER TABLE contents DROP KEY contents_review, DROP COLUMN review_at")
	exec(t, c, "DELETE FROM tierflow_schema WHERE version_id = 7")
	exec(t, c, "INSERT INTO appraisal (change_id, before_levels, after_cid) VALUES ('c', '[]', 3)")
	for range 2 { // the second time as after a crash
		if _, err := c.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		var change string
		var after int64
		if err := c.DB().QueryRowContext(t.Context(), "SELECT change_id, after_cid FROM level_change").Scan(&change, &after); err != nil ||
			change != "c" || after != 3 {
			t.Fatalf("%s, %d, %v", change, after, err)
		}
		exec(t, c, "DELETE FROM tierflow_schema WHERE version_id = 7")
	}
}
