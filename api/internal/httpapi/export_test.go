package httpapi

import (
	"iter"
	"maps"

	"github.com/tierflow/tierflow/shared/fault"
)

// ProblemKinds are the kinds that have a status of their own.
func ProblemKinds() iter.Seq[fault.Kind] { return maps.Keys(problems) }
