package benchmarks

import (
	"strings"
	"testing"
)

func TestPartsRunInTheirOwnOrderAndAnUnknownOneIsNamed(t *testing.T) {
	parts, err := Choose([]string{"commit", "ingest"})
	if err != nil || len(parts) != 2 || parts[0].Name != "ingest" || parts[1].Name != "commit" {
		t.Fatal(parts, err)
	}
	if parts, err = Choose(nil); err != nil || len(parts) != len(Parts()) {
		t.Fatal(parts, err)
	}
	if _, err = Choose([]string{"moves", "speed"}); err == nil || !strings.Contains(err.Error(), `"speed"`) || !strings.Contains(err.Error(), "pipeline") {
		t.Fatalf("the error is %v", err)
	}
}
