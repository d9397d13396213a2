package httpapi

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// FuzzParseObject checks the walk over members against encoding/json.
func FuzzParseObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"cid":7,"count":"8"}`, `{"a":{"cid":1},"cid":[],"count":{"x":"}"}}`, ` {"c\u0069d" : -1.5e3 , "count":null } `,
		`{"cid":"\"\\","count":tru}`, `[1,{"cid":2}]`, `"cid"`, `{"cid":1}{`, "{\"cid\":1,\n\t\"count\":[[\"]\"],2]\r}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		names, values := 0, map[string]string{}
		err := eachMember(b, func(name, value []byte) error {
			names++
			values[string(name)] = string(value)
			return nil
		})
		var want map[string]json.RawMessage
		if bad := json.Unmarshal(b, &want); (bad != nil || want == nil) != (err != nil) {
			t.Fatalf("%q: %v, encoding/json says %v", b, err, bad)
		}
		for name, value := range values {
			// encoding/json writes other names than it was given where they are not UTF-8.
			if len(want) == names && string(want[name]) != value && utf8.ValidString(name) {
				t.Fatalf("%q: %q is %q, encoding/json says %q", b, name, value, want[name])
			}
		}
	})
}

func TestParsingTheFormOfTheHotPathAllocatesNothing(t *testing.T) {
	body := []byte("cid=7&count=1964")
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := parseView(formType, body); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Fatalf("%v allocations", n)
	}
}
