package e2e_test

import (
	"os"
	"strings"
	"testing"

	"github.com/tierflow/tierflow/scripts/testenv/stack"
)

// TestAfterAFailoverOfMySQLThatLostCommitsVerifyMakesReadersFindEveryFile puts the rows and the history back to where they were
// before the last moves, as a replica does that lagged. The old copies were released meanwhile.
func TestAfterAFailoverOfMySQLThatLostCommitsVerifyMakesReadersFindEveryFile(t *testing.T) {
	w := start(t, options{})
	copied, linked := w.add(1, "bronze", 5000), w.add(2, "bronze", 3000)
	w.post(1, 5000) // gold lies on another file system, so this one gets a digest
	w.post(2, 1500)
	w.checkSettled()
	row, err := w.Catalog.Row(t.Context(), 1)
	w.must("read a row", err)
	exec := func(statement string) {
		t.Helper()
		_, err := w.Catalog.DB().ExecContext(t.Context(), statement)
		w.must(statement, err)
	}
	exec("CREATE TABLE replica AS SELECT * FROM contents")
	w.post(1, 1600)
	w.post(2, 5)
	w.checkSettled()
	exec("DELETE h FROM update_history h JOIN replica r ON h.cid = r.cid WHERE h.update_time > r.update_time")
	exec("DELETE FROM contents")
	exec("INSERT INTO contents SELECT * FROM replica")
	exec("DROP TABLE replica")
	if _, err := os.Stat(w.path(copied, "gold")); !os.IsNotExist(err) {
		t.Fatalf("the row's file is there: %v", err)
	}

	repair := func(flags ...string) string {
		t.Helper()
		out, code, err := w.Run(t.Context(), stack.Relocator, append([]string{"verify", "--repair"}, flags...)...)
		if err != nil || code != 1 {
			t.Errorf("relocator verify %v: exit code %d, %v\n%s", flags, code, err, out)
		}
		return out
	}
	out := repair()
	if row.Digest != "" && !strings.Contains(out, "the row must name silver") { // "": the machine has one file system only
		t.Errorf("the copied item was not corrected:\n%s", out)
	}
	if !strings.Contains(out, "see --by-size") {
		t.Errorf("the linked item has no digest:\n%s", out)
	}
	if row.Digest != "" {
		w.waitLevel(copied.ID, "silver")
	}
	repair("--by-size")
	w.waitLevel(linked.ID, "bronze")
	w.checkSettled()
	w.verifyClean()
}
