package httpapi_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tierflow/tierflow/api/client"
)

// shapes are the JSON shapes of the api, by their names in openapi.yaml. An item keeps its old name there: generators of
// clients use it.
var shapes = map[string]any{
	"Sentence": client.Sentence{}, "View": client.View{}, "Accepted": client.Accepted{}, "Batch": client.Batch{},
	"Refusal": client.Refusal{}, "Content": client.Item{}, "State": client.State{}, "Location": client.Location{},
	"Items": client.Items{}, "Decision": client.Decision{}, "NewItem": client.NewItem{}, "Pin": client.Pin{}, "Move": client.Move{},
	"History": client.History{}, "Level": client.Level{}, "Levels": client.Levels{}, "Plan": client.Plan{}, "PlannedMove": client.PlannedMove{}, "PlannedLevel": client.PlannedLevel{}, "Relocation": client.Relocation{},
	"Unreachable": client.Unreachable{}, "Relocations": client.Relocations{}, "Paused": client.Paused{},
	"WaitingEntry": client.WaitingEntry{}, "Waiting": client.Waiting{},
	"DeadLetter": client.DeadLetter{}, "DeadLetters": client.DeadLetters{}, "Retried": client.Retried{}, "Problem": client.Problem{},
	"Overview": client.Status{}, "Tier": client.Tier{}, "Rates": client.Rates{}, "Attention": client.Attention{}, "Service": client.Service{}, "Stage": client.Stage{}, "DeadKind": client.DeadKind{},
}

// schema is a part of openapi.yaml that describes a JSON value.
type schema struct {
	Ref        string            `yaml:"$ref"`
	Type       any               // a name, or a list of them
	Properties map[string]schema `yaml:"properties"`
	Required   []string
	Items      *schema
	OneOf      []schema `yaml:"oneOf"`
	Additional *schema  `yaml:"additionalProperties"`
}

// types are the JSON types that a schema allows. That of a named schema is its name, or its JSON type where it is no object.
func (s schema) types(named map[string]schema) (names []string) {
	switch t := s.Type.(type) {
	case string:
		names = append(names, t)
	case []any:
		for _, n := range t {
			names = append(names, n.(string))
		}
	}
	if s.Ref != "" {
		name := path.Base(s.Ref)
		if of := named[name].types(named); !slices.Equal(of, []string{"object"}) {
			return of
		}
		names = append(names, name)
	}
	for _, one := range s.OneOf {
		names = append(names, one.types(named)...)
	}
	if slices.Contains(names, "array") && s.Items != nil {
		names = []string{"array of " + strings.Join(s.Items.types(named), " or ")}
	}
	if s.Additional != nil {
		names = append(names, "of "+strings.Join(s.Additional.types(named), " or "))
	}
	return names
}

// typesOf are the JSON types that encoding/json makes of a Go type, as schema.types names them.
func typesOf(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.String:
		return []string{"string"}
	case reflect.Bool:
		return []string{"boolean"}
	case reflect.Int, reflect.Int64:
		return []string{"integer"}
	case reflect.Float64:
		return []string{"number"}
	case reflect.Pointer:
		return append(typesOf(t.Elem()), "null")
	case reflect.Slice:
		return []string{"array of " + strings.Join(typesOf(t.Elem()), " or ")}
	case reflect.Map:
		return []string{"object", "of " + strings.Join(typesOf(t.Elem()), " or ")}
	case reflect.Struct:
		for name, shape := range shapes {
			if reflect.TypeOf(shape) == t {
				return []string{name}
			}
		}
	}
	return []string{t.String()}
}

// field is a field of a JSON object.
type field struct {
	types    string
	optional bool
}

// fieldsOf are the fields that encoding/json reads and writes for a struct. Those of an embedded pointer are optional.
func fieldsOf(t reflect.Type) map[string]field {
	fields := map[string]field{}
	for f := range t.Fields() {
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous {
			for name, inner := range fieldsOf(f.Type.Elem()) {
				fields[name] = field{inner.types, true}
			}
			continue
		}
		types := typesOf(f.Type)
		if option == "omitempty" {
			types = slices.DeleteFunc(types, func(name string) bool { return name == "null" })
		}
		fields[name] = field{strings.Join(types, " or "), option == "omitempty"}
	}
	return fields
}

// schemas reads the named schemas of openapi.yaml.
func schemas(t *testing.T) map[string]schema {
	t.Helper()
	var doc struct {
		Components struct{ Schemas map[string]schema }
	}
	if err := yaml.Unmarshal([]byte(readFile(t, "openapi.yaml")), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Components.Schemas
}

func TestEveryShapeIsInTheDescriptionFieldByField(t *testing.T) {
	named := schemas(t)
	for name, shape := range shapes {
		want := map[string]field{}
		for property, s := range named[name].Properties {
			want[property] = field{strings.Join(s.types(named), " or "), !slices.Contains(named[name].Required, property)}
		}
		got := fieldsOf(reflect.TypeOf(shape))
		for _, property := range slices.Sorted(maps.Keys(got)) {
			in, out := got[property], want[property]
			if name == "Level" {
				in.optional, out.optional = false, false // a document to set levels may leave out what an answer has
			}
			if in != out {
				t.Errorf("%s.%s: %T has %s, openapi.yaml has %s", name, property, shape, in, out)
			}
			delete(want, property)
		}
		for property, f := range want {
			t.Errorf("%s.%s: openapi.yaml has %s, %T lacks it", name, property, f, shape)
		}
	}
}

func (f field) String() string {
	switch {
	case f.types == "":
		return "no such field"
	case f.optional:
		return "optional " + f.types
	}
	return f.types
}

func TestTheClientAndTheDescriptionHaveTheSameShapes(t *testing.T) {
	for name, s := range schemas(t) {
		if _, ok := shapes[name]; !ok && s.Type == "object" && name != "OnlyCID" {
			t.Errorf("openapi.yaml has the schema %s, and the client no type for it", name)
		}
	}
	var types []string
	for _, shape := range shapes {
		types = append(types, reflect.TypeOf(shape).Name())
	}
	for _, file := range []string{"types.go", "problem.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), "../../client/"+file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			d, ok := d.(*ast.GenDecl)
			if !ok || d.Tok != token.TYPE {
				continue
			}
			// An Event is a server-sent event: the stream is no JSON.
			if name := d.Specs[0].(*ast.TypeSpec).Name.Name; name != "Event" && !slices.Contains(types, name) {
				t.Errorf("the client has the type %s, and openapi.yaml no schema for it", name)
			}
		}
	}
}

// A second declaration of a shape would drift from the first.
func TestAnswersAreTheTypesOfTheClient(t *testing.T) {
	for _, file := range []string{"items.go", "levels.go", "operations.go", "sentences.go", "views.go", "problem.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if s, ok := n.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					if f.Tag == nil || strings.Contains(f.Tag.Value, `json:"cid"`) || strings.Contains(f.Tag.Value, `json:"levels"`) {
						continue // a document that is read: it also takes texts for numbers, and tells what is missing
					}
					t.Errorf("%s declares the JSON field %s itself", file, f.Tag.Value)
				}
			}
			return true
		})
	}
}
